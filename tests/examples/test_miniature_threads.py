import os

import pytest
import torch

from examples.miniature.threads import use_one_thread


@pytest.mark.parametrize(("chosen", "threads"), [(None, 1), ("3", 3)])
def test_one_thread_unless_the_user_chose(monkeypatch, chosen, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")  # put back afterwards
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        use_one_thread()
        assert torch.get_num_threads() == threads
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    finally:
        torch.set_num_threads(before)
