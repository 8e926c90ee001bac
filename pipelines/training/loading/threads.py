"""Threads that load while something else computes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_threaded_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads are started, and in which torch computes on the calling thread alone.

    Threads with OpenMP teams of their own would take the cores from the training. torch.set_num_threads holds for the
    thread that calls it, and for threads that first compute later: hence all start here, and the caller's own number is
    set again afterwards.
    """
    own = torch.get_num_threads()
    started = threading.Barrier(num_threads + 1)

    def start() -> None:
        torch.get_num_threads()  # takes up the common number, which would else replace ours at the first operation
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=start)
    for _ in range(num_threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(own)
    return pool
