"""How do the arms stand while the measuring still runs? For a person who waits; the result is made of all blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from msn_deploy.bench.measure import Samples
from msn_deploy.bench.stats import block_medians
from msn_deploy.bench.validity import block_causes


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One arm until now, all its builds. median_ms: of its clean blocks' medians; ratio: of medians, to the first arm.

    None where no clean block is there yet. blocks: measured, dirty ones too.
    """

    name: str
    median_ms: float | None
    ratio: float | None
    blocks: int
    dirty: int


def standings(samples: Samples) -> list[Standing]:
    """Return the arms in their order; the first is the one that others are compared with.

    readings of `samples`: one before every block and, if the run is over, one after.
    """
    causes = block_causes(samples.readings) if samples.readings else []
    medians: dict[str, list[float]] = {arm.name: [] for arm in samples.arms}
    blocks, dirty = dict.fromkeys(medians, 0), dict.fromkeys(medians, 0)
    for arm in samples.arms:
        lost = [bool(slot < len(causes) and causes[slot]) for slot in arm.slots]
        medians[arm.name] += block_medians(arm.blocks)[~np.array(lost, dtype=bool)].tolist()
        blocks[arm.name] += len(lost)
        dirty[arm.name] += sum(lost)
    middle = {name: float(np.median(values)) / 1e6 if values else None for name, values in medians.items()}
    first = next(iter(middle.values()))
    return [
        Standing(
            name=name,
            median_ms=ms,
            ratio=ms / first if ms and first else None,
            blocks=blocks[name],
            dirty=dirty[name],
        )
        for name, ms in middle.items()
    ]


Watch = Callable[[Callable[[], Samples]], None]
