"""Feeds: an array for each input of a network, by name; and numbers to try a network on where there is no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import InputOption, TensorSpec

Array = NDArray[Any]
Feeds = Mapping[str, Array]
"""One run's inputs, or its outputs."""


BATCH = "batch"  # the name of a first size that stays open


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleInput:
    """An input of a network with the sizes that it is tried with, some of which may stay open in its file.

    open: for each size its name where it stays open, else None. Sizes of one name are equal.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    open: tuple[str | None, ...]

    @property
    def spec(self) -> TensorSpec:
        """What the file says of it."""
        sizes = zip(self.shape, self.open, strict=True)
        return TensorSpec(self.name, self.dtype, tuple(None if name else size for size, name in sizes))

    def sized(self, sizes: Mapping[str, int]) -> ExampleInput:
        """Return it with other numbers for open sizes, by their name."""
        return replace(self, shape=tuple(sizes.get(name or "", size) for size, name in self._sizes()))

    def _sizes(self) -> list[tuple[int, str | None]]:
        return list(zip(self.shape, self.open, strict=True))


_DEFAULT_EXAMPLE = 64  # of an open size for which no number is given


def example_of(option: InputOption) -> ExampleInput:
    """Return the input of a network that has no file yet."""
    return ExampleInput(
        name=option.name,
        dtype=option.dtype or "float32",
        shape=tuple(size or _DEFAULT_EXAMPLE for size, _ in option.sizes),
        open=tuple(name for _, name in option.sizes),
    )


def fixed_input(name: str, dtype: str, shape: Sequence[int]) -> ExampleInput:
    """Return an input of which every size is fixed."""
    return ExampleInput(name=name, dtype=dtype, shape=tuple(shape), open=(None,) * len(shape))


def with_open_batch(inputs: Sequence[ExampleInput]) -> tuple[ExampleInput, ...]:
    """Return the inputs with the first size open in all that share that of the first input."""
    first = inputs[0].shape[:1]
    return tuple(
        replace(each, open=(BATCH, *each.open[1:])) if first and each.shape[:1] == first else each for each in inputs
    )


def random_feeds(inputs: Sequence[TensorSpec | ExampleInput], *, rows: int = 1, seed: int = 0) -> dict[str, Array]:
    """Return seeded numbers for every input, of its type and shape; `rows` stands for an open first size, 1 for others.

    Floats are normal numbers, uint8 has 0 to 255 (pixels), and all other types 0 and 1, which most networks take, be
    they counts, indices or flags. Raises InputError for an input of no known rank, or of a type that numpy has not.
    """
    generator = np.random.default_rng(seed)
    return {spec.name: _random(spec, rows, generator) for spec in inputs}


def _random(spec: TensorSpec | ExampleInput, rows: int, generator: np.random.Generator) -> Array:
    if spec.shape is None:
        raise InputError(f"the input {spec.name!r} says no shape.\nGive `--input {spec.name}=1,3,224,224`.")
    shape = tuple((1 if at else rows) if size is None else size for at, size in enumerate(spec.shape))
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as cause:
        raise InputError(f"the input {spec.name!r} has the type {spec.dtype}, which no numpy array has.") from cause
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def rows_of(feeds: Feeds) -> int:
    """Return how many rows the first array has; a number by itself is one."""
    first = next(iter(feeds.values()))
    return len(first) if first.ndim else 1


def joined(runs: Sequence[Feeds]) -> dict[str, Array]:
    """Return what several runs gave as one array per name, one run's rows behind the other's."""
    if len(runs) == 1:
        return dict(runs[0])
    return {name: _stacked([run[name] for run in runs]) for name in runs[0]}


def _stacked(parts: Sequence[Array]) -> Array:
    """Concatenate along the first axis; parts without one, or of several shapes, become one row of numbers."""
    if parts[0].ndim and len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return np.concatenate([part.ravel() for part in parts])
