"""What a model wrote runs within limits, and only if it ends well."""

import time

import pytest

from trainer.evaluation.child_program import passes


def test_what_passes():
    assert passes(
        "import math, re, heapq, collections, itertools\ndef f(x):\n    return math.sqrt(x)", ["assert f(4) == 2"]
    )
    assert not passes("def f(x):\n    return x", ["assert f(4) == 2"])
    assert not passes("def f(x:", []) and not passes("", [])
    assert not passes("raise SystemExit(0)", ["assert False"])  # ended before its tests


@pytest.mark.parametrize(
    "program",
    [
        "open({file!r}, 'w').write('x')",
        "import os; os.open({file!r}, os.O_CREAT | os.O_WRONLY)",
        "import os; os.remove({there!r})",
        "import pathlib; pathlib.Path({there!r}).unlink()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import ctypes; ctypes.CDLL(None).getpid()",
        "try:\n    import os; os.remove({there!r})\nexcept BaseException:\n    pass",
        "x = bytearray(2 ** 31)",
    ],
)
def test_what_is_refused(program, tmp_path):
    file, there = tmp_path / "new", tmp_path / "there"
    there.write_text("kept")
    assert not passes(program.format(file=str(file), there=str(there)), ["pass"])
    assert there.read_text() == "kept" and not file.exists()


def test_time_runs_out():
    start = time.monotonic()
    assert not passes("while True: pass", [], seconds=0.5)
    assert not passes("import time; time.sleep(60)", [], seconds=0.5)
    assert time.monotonic() - start < 10
