"""What a training on a CPU has used once, it uses again."""

from __future__ import annotations

import subprocess
import sys

_STEPS = """
import resource, sys
import torch
from pipelines.training import host_memory

if sys.argv[1] == "kept":
    assert host_memory.keep()
torch.set_num_threads(1)

def step():
    activations = [torch.ones(10_000_000) for _ in range(4)]  # 40 MB each: above what malloc takes from its heap
    return sum(float(one[0]) for one in activations)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(10):  # until the heap has grown to what the steps need, whatever hole each finds
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""
_PAGES = 10 * 4 * 10_000_000 * 4 // 4096


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _STEPS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_steps_after_the_first_get_no_new_pages_from_the_kernel() -> None:
    assert _faults("kept") < _PAGES / 20
    assert _faults("as it comes") > _PAGES / 2  # or there is nothing to keep any more
