import pytest

from examples.stoppable import stoppable


def test_ctrl_c_ends_with_a_sentence_and_the_status_of_shells(capsys):
    with pytest.raises(SystemExit) as ended, stoppable("The same command starts anew."):
        raise KeyboardInterrupt
    assert ended.value.code == 130 and ended.value.__suppress_context__
    assert capsys.readouterr().err == "\nInterrupted by the keyboard. The same command starts anew.\n"


def test_other_errors_pass():
    with pytest.raises(ValueError, match="mine"), stoppable(""):
        raise ValueError("mine")
