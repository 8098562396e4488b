"""How many threads the miniature trains with."""

import os

import torch


def use_one_thread():
    """
    So small a model gains little from a second thread, and loses much beside a busy process: the threads wait for one
    another at every operation. Whoever sets `OMP_NUM_THREADS` or `TOKENIZERS_PARALLELISM` keeps theirs.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a pool that is woken for each text
