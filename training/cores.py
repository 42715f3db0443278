"""A CPU's cores, shared out among threads that each compute something of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def pool(threads: int, cores: int) -> ThreadPoolExecutor:
    """So many threads, each with so many cores for torch to spread an operation over."""
    mine, all_there = torch.get_num_threads(), Barrier(threads + 1)
    executor = ThreadPoolExecutor(threads, "cores", _begin, (cores, all_there))
    for _ in range(threads):
        executor.submit(lambda: None)
    all_there.wait()
    torch.set_num_threads(mine)  # which is also what threads to come begin with
    return executor


def _begin(cores: int, all_there: Barrier) -> None:
    torch.get_num_threads()  # when a thread first asks torch, it gets the number that others have
    torch.set_num_threads(cores)
    all_there.wait()
