"""In what state was the machine around every block, and which blocks must therefore not count?

A block is dirty only for a recorded cause: a throttle counter that rose, a clock that fell, a zone so hot that it
slows something down, a device that does so. A slow block without a cause stays: it may be what the model is like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from msn_deploy.machine.state import Reading

STATES = ("before", "during", "after")  # of a run, as `states` calls them
DIRTY_ALLOWED = 0.10  # of all blocks; above it the run is invalid
# A clock below this share of its usual value is a throttled one (NVBench discards below 0.75 of the default clock).
CLOCK_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """How many blocks of how many were dropped, and for what; `causes` counts blocks per cause."""

    blocks: int
    dirty_blocks: int
    causes: Mapping[str, int]

    @property
    def valid(self) -> bool:
        """Whether the run may be reported."""
        return self.dirty_blocks <= DIRTY_ALLOWED * self.blocks

    @property
    def message(self) -> str:
        """What is wrong with an invalid run, in two lines."""
        worst = max(self.causes, key=lambda cause: self.causes[cause], default="")
        return (
            f"invalid: {self.dirty_blocks} of {self.blocks} blocks ({self.dirty_blocks / self.blocks:.0%}) ran on a "
            f"throttled machine, {DIRTY_ALLOWED:.0%} may; mostly: {worst}.\n"
            "Cool the machine, or lock its clocks below the highest (`sudo jetson_clocks` on a Jetson); measure again."
        )


def block_causes(readings: Sequence[Reading], *, pinned_mhz: Mapping[str, float] | None = None) -> list[str | None]:
    """Return for each block why it is dirty, or None; readings: one before every block and one after the last.

    pinned_mhz: clocks that are locked; others are compared with their own median over the run.
    """
    usual = {
        name: float(np.median([each.clocks_mhz[name] for each in readings if name in each.clocks_mhz]))
        for name in sorted({name for each in readings for name in each.clocks_mhz})
    } | dict(pinned_mhz or {})
    return [_cause(before, after, readings[0], usual) for before, after in pairwise(readings)]


def _cause(before: Reading, after: Reading, first: Reading, usual: Mapping[str, float]) -> str | None:
    for name, count in after.throttled.items():
        if count > before.throttled.get(name, count):
            return f"{name}: throttle events counted"
    for name, mhz in usual.items():
        if min(each.clocks_mhz.get(name, mhz) for each in (before, after)) < CLOCK_SHARE * mhz:
            return f"{name} clock below {CLOCK_SHARE:.0%} of {mhz:.0f} MHz"
    for each in (before, after):
        if each.trips:
            return f"{each.trips[0]} at its throttling trip point"
        for name, state in each.cooling.items():
            if state > max(0, first.cooling.get(name, 0)):
                return f"{name.rpartition(' ')[0]} is cooling by slowing down"
    return None


def judge(causes: Sequence[str | None]) -> Validity:
    """Count the dirty blocks of a run."""
    found = Counter(cause for cause in causes if cause is not None)
    return Validity(blocks=len(causes), dirty_blocks=sum(found.values()), causes=dict(found.most_common()))


def states(readings: Sequence[Reading]) -> dict[str, Any]:
    """Return the machine before, during ([lowest, highest] of each value) and after, as JSON values."""
    if not readings:
        return {}
    flat = [_flat(each) for each in readings]
    inside = flat[1:-1] or flat
    values = {name: [each[name] for each in inside if name in each] for each in inside for name in each}
    during = {name: [min(found), max(found)] for name, found in values.items()}
    return dict(zip(STATES, (flat[0], during, flat[-1]), strict=True))


def _flat(reading: Reading) -> dict[str, float]:
    found: dict[str, float] = {f"{name}_mhz": mhz for name, mhz in reading.clocks_mhz.items()}
    found |= {f"{name} °C": celsius for name, celsius in reading.temperatures_c.items()}
    events = sum(reading.throttled.values())
    return (
        found
        | ({"throttle events": events} if reading.throttled else {})
        | ({} if reading.load is None else {"load": reading.load})
    )
