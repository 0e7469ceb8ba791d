"""How are the magnitudes of the activations distributed on real inputs? Two passes, and nothing kept of a sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data.feeds import Feeds, ImageSamples, Samples
from msn_deploy.model.feeds import random_feeds
from msn_deploy.model.graphs import constants_of, free_name, names_of, with_outputs
from msn_deploy.model.opened import inputs_of, only_input
from msn_deploy.quant.calibration_checks import Images
from msn_deploy.quant.scales import BINS

LEAST = 1e-30  # a scale below it is no normal float32
_TOLERANCE = 1e-3  # of the largest value: two batch sizes round differently, a wrong reshape is another tensor
_LOG = logging.getLogger(__name__)


class Runner(Protocol):
    """A loaded network: named arrays in, named arrays out."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Map an array for each input to one for each output."""
        ...


Load = Callable[[ModelProto], Runner]
"""Loads a graph on the CPU and one thread; what it runs is the same bit for bit each time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histograms:
    """Magnitudes of each tensor, kept apart by groups of samples.

    counts: per tensor int64 (S, G, BINS), |x| in equal bins over [0, largest |x| of all samples]. maxima: per tensor
    float32 (S, G). Each of S orders of the samples deals all of them to its G groups.
    """

    counts: Mapping[str, NDArray[np.int64]]
    maxima: Mapping[str, NDArray[np.float32]]

    def first(self, groups: int | None, order: int = 0) -> dict[str, tuple[NDArray[np.int64], float, float]]:
        """Return counts, upper edge and true maximum per tensor, of the first groups of an order (None: all)."""
        return {
            name: (
                counts[order, :groups].sum(axis=0),
                float(self.maxima[name][order].max()),
                float(self.maxima[name][order, :groups].max()),
            )
            for name, counts in self.counts.items()
        }


def collect(
    model: ModelProto,
    samples: Samples,
    tensors: Sequence[str],
    *,
    load: Load,
    groups: NDArray[np.intp] | None = None,
    progress: Progress = silent,
) -> Histograms:
    """Run the model on every sample and count the magnitudes of the tensors.

    load: what runs the model. groups: (S, N), the group of each sample in each of S orders; None: one group.

    The first pass finds the maxima, the second counts integers in bins that are fixed by them: neither depends on the
    order of the samples, on the batch that the model was exported with, or on how the samples are split. A tensor that
    stays below LEAST is not counted.
    Raises InputError for a value that is not finite.
    """
    network = SingleSample(model, tensors, samples.rows, load)
    groups = np.zeros((1, len(samples)), dtype=np.intp) if groups is None else groups
    shape = (len(groups), int(groups.max(initial=0)) + 1)
    orders = np.arange(len(groups))
    maxima = {name: np.zeros(shape, dtype=np.float32) for name in tensors}
    counts = {name: np.zeros((*shape, BINS), dtype=np.int64) for name in tensors}
    total = 2 * len(samples)

    for at, sample in enumerate(samples):
        where = orders, groups[:, at]
        for name, value in network.run(sample).items():
            largest = np.abs(value).max(initial=0)
            if not np.isfinite(largest):
                raise InputError(
                    f"{name} is {largest} on calibration sample {at} (counted from 0).\n"
                    "Check that sample, and the model in FP32."
                )
            maxima[name][where] = np.maximum(maxima[name][where], largest)
        progress(at + 1, total, "calibrating: ranges")
    edges = {name: float(largest.max()) for name, largest in maxima.items() if largest.max() >= LEAST}
    for at, sample in enumerate(samples):
        where = orders, groups[:, at]
        for name, value in network.run(sample).items():
            if name in edges:
                counts[name][where] += count(value, edges[name])
        progress(len(samples) + at + 1, total, "calibrating: histograms")
    return Histograms(counts=counts, maxima=maxima)


def smallest(model: ModelProto, samples: Samples, tensors: Sequence[str], *, load: Load) -> dict[str, float]:
    """Return the smallest magnitude above 0 of each tensor, over all samples; infinite where there is none."""
    network = SingleSample(model, tensors, samples.rows, load)
    found = dict.fromkeys(tensors, math.inf)
    for sample in samples:
        for name, value in network.run(sample).items():
            found[name] = min(found[name], float(np.abs(value[value != 0]).min(initial=math.inf)))
    return found


def extremes(
    model: ModelProto, samples: Samples, tensors: Sequence[str], *, load: Load, progress: Progress = silent
) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of each tensor, over all samples."""
    network = SingleSample(model, tensors, samples.rows, load)
    found = dict.fromkeys(tensors, (math.inf, -math.inf))
    for at, sample in enumerate(samples, 1):
        for name, value in network.run(sample).items():
            low, high = found[name]
            found[name] = (min(low, float(value.min(initial=low))), max(high, float(value.max(initial=high))))
        progress(at, len(samples), "calibrating: signs")
    return found


def samples_of(model: ModelProto, images: Images) -> Samples:
    """Return images (N, C, H, W) as samples for a network with a single input."""
    name, _ = only_input(inputs_of(model), source="the model")
    return ImageSamples(name, images)


def count(values: NDArray[np.float32], edge: float) -> NDArray[np.int64]:
    """Return how many |values| are in each of BINS equal bins over [0, edge]."""
    at = np.abs(values.reshape(-1))
    at *= np.float32(BINS / edge)
    return np.bincount(np.minimum(at.astype(np.intp), BINS - 1), minlength=BINS)


class SingleSample:
    """A network that runs one sample at a time and returns tensors from its inside.

    A runtime's kernels may round differently for another batch. What is measured sample by sample, on one graph of
    batch 1, is the same bit for bit whatever batch the model was exported with and in whatever order the samples come.
    """

    def __init__(self, model: ModelProto, tensors: Sequence[str], rows: Collection[str], load: Load) -> None:
        """Load the model at batch 1, with the named tensors as its outputs; rows: the inputs that have a batch.

        A model of a fixed batch B > 1 whose graph holds B elsewhere than in its inputs and its reshapes runs as it
        is, on B copies of each sample, which the log says. Raises InputError if it does not run.
        """
        inputs = inputs_of(model)
        self._inputs, self._rows = {spec.name for spec in inputs}, set(rows)
        self._tensors, self._load = list(tensors), load
        self._inside = [name for name in tensors if name not in self._inputs]
        self._batch = 1
        self._runner: Runner | None = None
        fixed = max((spec.shape[0] or 1 for spec in inputs if spec.name in self._rows and spec.shape), default=1)
        if not self._inside:
            return
        if fixed > 1 and not self._is_same_as(model, fixed):
            _LOG.warning(
                "the network only runs in batches of %d: each sample is run %d times to calibrate", fixed, fixed
            )
            self._batch = fixed
            self._runner = load(with_outputs(model, self._inside))
        elif fixed == 1:
            self._runner = load(_at_batch_one(with_outputs(model, self._inside), self._rows, fixed))

    def run(self, sample: Feeds) -> dict[str, NDArray[Any]]:
        """Return the tensors by name for one sample. Raises InputError if the network does not take it."""
        found = {name: sample[name] for name in self._tensors if name in self._inputs}
        if self._runner is not None:
            found |= self._runner.run(self._repeated(sample, self._batch))
        return found

    def _repeated(self, sample: Feeds, batch: int) -> dict[str, NDArray[Any]]:
        return {
            name: np.repeat(each, batch, axis=0) if batch > 1 and name in self._rows else each
            for name, each in sample.items()
        }

    def _is_same_as(self, model: ModelProto, batch: int) -> bool:
        """Load the model at batch 1, and compare it on one sample with the model as it is."""
        whole = with_outputs(model, self._inside)
        sample = random_feeds([
            replace(spec, shape=(1, *spec.shape[1:])) if spec.name in self._rows and spec.shape else spec
            for spec in inputs_of(model)
        ])  # fmt: skip
        truth = self._load(whole).run(self._repeated(sample, batch))
        try:
            self._runner = self._load(_at_batch_one(whole, self._rows, batch))
            single = self._runner.run(sample)
        except InputError:
            return False
        return all(_is_one_of(single[name], truth[name], batch) for name in self._inside)


def _is_one_of(single: NDArray[np.float32], truth: NDArray[np.float32], batch: int) -> bool:
    if truth.size != batch * single.size:
        return False
    rows = truth.reshape(batch, -1)
    return bool(np.abs(rows - single.reshape(1, -1)).max(initial=0) <= _TOLERANCE * np.abs(truth).max(initial=0))


def _at_batch_one(model: ModelProto, names: Collection[str], batch: int) -> ModelProto:
    """Set the batch of the inputs, and that of reshapes to a constant shape that starts with it, to 1."""
    copied = ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    for entry in graph.input:
        if entry.name in names and entry.type.tensor_type.shape.dim:
            entry.type.tensor_type.shape.dim[0].dim_value = 1
    if batch == 1:
        return copied
    constants, taken = constants_of(graph), names_of(copied)
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if len(shape) and shape[0] == batch:
                shape[0] = 1
                # A shape of its own: others may read the constant too.
                node.input[1] = free_name(f"{node.input[1]}_single", taken)
                graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    return copied
