"""Memory that a step frees is there for the next one, without a page fault for every 4 KiB of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A bytearray is allocated and filled as a tensor of ones is. Blocks above glibc's largest threshold of its own accord
# (32 MiB), so that by default each one is unmapped when freed.
STEPS = """
import resource, sys
if sys.argv[1] == "kept":
    from msn_deploy.training import keep_freed_memory
    keep_freed_memory()
def step():
    bytearray(48 * 2**20)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_taken_from_the_kernel_again() -> None:
    default, kept = _faults("default"), _faults("kept")
    assert kept < 100
    assert default > 10 * max(kept, 10)
