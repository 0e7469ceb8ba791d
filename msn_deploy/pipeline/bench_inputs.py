"""What is a network fed while it is timed? Images or feeds from files, else seeded random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from msn_deploy.core.artifacts import Parent
from msn_deploy.core.errors import InputError, InvalidMeasurement
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.data import to_input
from msn_deploy.data.feeds import is_feeds, open_feeds
from msn_deploy.engine import Runner
from msn_deploy.engine.runner import sizes_text
from msn_deploy.engine.tensors import InputShapes, sized_inputs
from msn_deploy.model.feeds import Feeds, random_feeds, rows_of
from msn_deploy.pipeline.images import own_data, preprocess_for, split_for

_DIFFERENT = 64  # feeds that the queries cycle through,
_MOST_BYTES = 256 << 20  # of this size together at most
_LEAST = 4


@dataclass(frozen=True, slots=True)
class BenchInputs:
    """feeds: what the queries cycle through. images: which images they are; None for random numbers."""

    feeds: Sequence[Feeds]
    images: Parent | None

    @property
    def in_words(self) -> str:
        """Name, type and shape of every input."""
        return ", ".join(f"{name} {each.dtype} {sizes_text(each.shape)}" for name, each in self.feeds[0].items())


def batch_of(runners: Iterable[Runner], asked: int | None, shapes: Sequence[InputShapes] = ()) -> int:
    """Return the rows of a query: those asked for, else those that `shapes` or the files fix, else 1.

    Raises InputError for files that fix different ones, if none is asked for.
    """
    if asked is not None:
        return asked
    given = {each.name: each.best for each in shapes}
    first = ((runner.name, runner.inputs[0]) for runner in runners if runner.inputs)
    sizes = ((name, given.get(spec.name, spec.shape or ())) for name, spec in first)
    fixed = {shape[0]: name for name, shape in sizes if len(shape) > 1 and shape[0] is not None}
    if len(fixed) > 1:
        raise InputError(
            f"{' and '.join(f'{name} has a fixed batch of {batch}' for batch, name in fixed.items())}.\n"
            "Export them with the same `--batch-size`, or with `--batch-size dynamic`."
        )
    return next(iter(fixed), 1)


def inputs_of(
    runner: Runner, *, batch: int, shapes: Sequence[InputShapes] = (), data: str | None = None
) -> BenchInputs:
    """Return what a network is fed in queries of `batch` rows.

    Args:
        runner: The network.
        batch: The first size of every input that leaves it open.
        shapes: Of inputs that leave other sizes open.
        data: Images, or feeds for all inputs; None takes the images that the network was trained on, if it says which.

    Raises:
        InputError: The network takes no such batch, shape or data, or leaves a size open that is not given.
    """
    if data is not None and is_feeds(data):
        return _from_files(runner, data, batch=batch, shapes=shapes)
    specs = sized_inputs(runner.inputs, shapes, batch=batch, source=runner.name)
    _check_batch(runner, specs, batch)
    size = sum(int(np.prod(spec.shape or ())) * np.dtype(spec.dtype).itemsize for spec in specs)
    count = min(_DIFFERENT, max(_LEAST, _MOST_BYTES // max(size, 1)))
    source = data or own_data(runner.info)
    if not source:
        return BenchInputs([random_feeds(specs, seed=at) for at in range(count)], None)
    (given, *others) = specs
    if others or given.dtype not in ("float32", "float16", "uint8"):
        named = ", ".join(f"{spec.name} ({spec.dtype})" for spec in specs)
        raise InputError(
            f"{source} holds images, and {runner.name} takes {named}.\n"
            "Give an array for each input: `--data FEEDS.npz`, saved with numpy.savez."
        )
    return _images(runner, given, data=data, batch=batch, count=count)


def _from_files(runner: Runner, data: str, *, batch: int, shapes: Sequence[InputShapes]) -> BenchInputs:
    """Take as many whole queries as the files hold, and few enough to be in memory at once."""
    given = {each.name: each.best for each in shapes}
    specs = [replace(spec, shape=given.get(spec.name, spec.shape)) for spec in runner.inputs]
    source = open_feeds(data, specs)
    feeds: list[Feeds] = []
    taken = most = 0
    for each in source.runs(most=batch):
        most = max(most, rows_of(each))
        if rows_of(each) == batch or not source.rows:
            feeds.append(each)
            taken += sum(array.nbytes for array in each.values())
        if len(feeds) >= _DIFFERENT or (len(feeds) >= _LEAST and taken > _MOST_BYTES):
            break
    if not feeds:
        raise InputError(
            f"{data} gives queries of {most} rows, {batch} are needed.\n"
            "Give a smaller `--batch-size`, or more samples of one size."
        )
    _check_batch(runner, [replace(spec, shape=feeds[0][spec.name].shape) for spec in specs], batch)
    return BenchInputs(feeds, source.as_parent())


def _images(runner: Runner, given: TensorSpec, *, data: str | None, batch: int, count: int) -> BenchInputs:
    prep = preprocess_for(runner.info, given.shape or (), model=runner.name)
    split = split_for(runner.info, prep, data, "test")
    images = to_input(split.images, prep, given.dtype)
    chosen = np.random.default_rng(0).permutation(max(len(images), count * batch)) % len(images)
    feeds = [{given.name: images[chosen[at * batch : (at + 1) * batch]]} for at in range(count)]
    return BenchInputs(feeds, split.as_parent())


def _check_batch(runner: Runner, specs: Sequence[TensorSpec], batch: int) -> None:
    """Refuse what would be several queries, or one on rows that nobody asked for."""
    shape = (specs[0].shape if specs else None) or ()
    if shape[1:] and shape[0] != batch:
        raise InputError(
            f"{runner.name} has a fixed batch of {shape[0]}, {batch} was asked for.\n"
            f"Export it with `--batch-size {batch}` or `--batch-size dynamic`."
        )
    least, most = runner.batch_range
    if shape[1:] and (batch < least or (most is not None and batch > most)):
        limit = f"at most {most}" if most is not None and batch > most else f"at least {least}"
        raise InputError(f"{runner.name} takes {limit} images at once.\nBuild it with `--batch-size {batch}`.")


def check_finite(runner: Runner, feeds: Iterable[Feeds], *, random: bool) -> None:
    """Run once on each; raise InvalidMeasurement if a value of an output is not finite."""
    for given in feeds:
        for name, made in runner.run(given).items():
            if made.dtype.kind == "f" and not np.isfinite(made).all():
                bad = int(made.size - np.isfinite(made).sum())
                raise InvalidMeasurement(
                    f"{runner.name} makes {name} with {bad} of {made.size} values that are not finite, of "
                    f"{'random numbers' if random else 'real samples'}. Such a network is not measured."
                    + ("\nGive it what it is made for: `--data FEEDS.npz`." if random else "")
                )
