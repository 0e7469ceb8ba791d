"""How are the magnitudes of the activations distributed on real images? Two passes, and nothing kept of an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.model.graphs import constants_of
from msn_deploy.model.opened import inputs_of, only_input
from msn_deploy.quant.calibration_checks import Images
from msn_deploy.quant.scales import BINS

LEAST = 1e-30  # a scale below it is no normal float32
_CHUNK = 32  # images that are decoded and prepared together
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
    """Magnitudes of each tensor, kept apart by groups of images.

    counts: per tensor int64 (S, G, BINS), |x| in equal bins over [0, largest |x| of all images]. maxima: per tensor
    float32 (S, G). Each of S orders of the images deals all of them to its G groups.
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
    images: Images,
    tensors: Sequence[str],
    *,
    load: Load,
    groups: NDArray[np.intp] | None = None,
    progress: Progress = silent,
) -> Histograms:
    """Run the model on every image and count the magnitudes of the tensors.

    load: what runs the model. groups: (S, N), the group of each image in each of S orders; None: one group.

    The first pass finds the maxima, the second counts integers in bins that are fixed by them: neither depends on the
    order of the images, on the batch that the model was exported with, or on how the images are split. A tensor that
    stays below LEAST is not counted.
    Raises InputError for a value that is not finite.
    """
    network = _SingleImage(model, tensors, load)
    groups = np.zeros((1, len(images)), dtype=np.intp) if groups is None else groups
    shape = (len(groups), int(groups.max(initial=0)) + 1)
    orders = np.arange(len(groups))
    maxima = {name: np.zeros(shape, dtype=np.float32) for name in tensors}
    counts = {name: np.zeros((*shape, BINS), dtype=np.int64) for name in tensors}
    total = 2 * len(images)

    for at, image in _each(images):
        where = orders, groups[:, at]
        for name, value in network.run(image).items():
            largest = np.abs(value).max(initial=0)
            if not np.isfinite(largest):
                raise InputError(
                    f"{name} is {largest} on calibration image {at} (counted from 0).\n"
                    "Check that image, and the model in FP32: `msn-deploy eval`."
                )
            maxima[name][where] = np.maximum(maxima[name][where], largest)
        progress(at + 1, total, "calibrating: ranges")
    edges = {name: float(largest.max()) for name, largest in maxima.items() if largest.max() >= LEAST}
    for at, image in _each(images):
        where = orders, groups[:, at]
        for name, value in network.run(image).items():
            if name in edges:
                counts[name][where] += count(value, edges[name])
        progress(len(images) + at + 1, total, "calibrating: histograms")
    return Histograms(counts=counts, maxima=maxima)


def count(values: NDArray[np.float32], edge: float) -> NDArray[np.int64]:
    """Return how many |values| lie in each of BINS equal bins over [0, edge]."""
    at = np.abs(values.reshape(-1))
    at *= np.float32(BINS / edge)
    return np.bincount(np.minimum(at.astype(np.intp), BINS - 1), minlength=BINS)


def _each(images: Images) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield every image (1, C, H, W) with its place, reading a chunk at a time."""
    for start in range(0, len(images), _CHUNK):
        chunk = np.ascontiguousarray(images[start : start + _CHUNK], dtype=np.float32)
        for offset in range(len(chunk)):
            yield start + offset, chunk[offset : offset + 1]


class _SingleImage:
    """A network that runs one image at a time and returns tensors from its inside.

    A runtime's kernels may round differently for another batch. What is measured image by image, on one graph of batch
    1, is the same to the bit whatever batch the model was exported with and in whatever order the images come.
    """

    def __init__(self, model: ModelProto, tensors: Sequence[str], load: Load) -> None:
        """Load the model at batch 1, with the named tensors as its outputs.

        A model of a fixed batch B > 1 whose graph holds B elsewhere than in its input and its reshapes runs as it
        is, on B copies of each image, which the log says. Raises InputError if it does not run.
        """
        self._input, shape = only_input(inputs_of(model), source="the model")
        self._image_shape = shape[1:]
        self._tensors, self._load = list(tensors), load
        self._inside = [name for name in tensors if name != self._input]
        self._batch = 1
        self._runner: Runner | None = None
        fixed = shape[0] or 1
        if not self._inside:
            return
        if fixed > 1 and not self._is_same_as(model, fixed):
            _LOG.warning(
                "the network only runs in batches of %d: each image is run %d times to calibrate", fixed, fixed
            )
            self._batch = fixed
            self._runner = load(_with_outputs(model, self._inside))
        elif fixed == 1:
            self._runner = load(_at_batch_one(_with_outputs(model, self._inside), self._input, fixed))

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors by name for one image (1, C, H, W). Raises InputError if the network does not take it."""
        found = {self._input: image} if self._input in self._tensors else {}
        if self._runner is not None:
            fed = np.repeat(image, self._batch, axis=0) if self._batch > 1 else image
            found |= self._runner.run({self._input: fed})
        return found

    def _is_same_as(self, model: ModelProto, batch: int) -> bool:
        """Load the model at batch 1, and compare it on one image with the model as it is."""
        whole = _with_outputs(model, self._inside)
        rng = np.random.default_rng(0)
        image = rng.standard_normal((1, *(size or 1 for size in self._image_shape)), dtype=np.float32)
        truth = self._load(whole).run({self._input: np.repeat(image, batch, axis=0)})
        try:
            self._runner = self._load(_at_batch_one(whole, self._input, batch))
            single = self._runner.run({self._input: image})
        except InputError:
            return False
        return all(_is_one_of(single[name], truth[name], batch) for name in self._inside)


def _is_one_of(single: NDArray[np.float32], truth: NDArray[np.float32], batch: int) -> bool:
    if truth.size != batch * single.size:
        return False
    rows = truth.reshape(batch, -1)
    return bool(np.abs(rows - single.reshape(1, -1)).max(initial=0) <= _TOLERANCE * np.abs(truth).max(initial=0))


def _with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy whose only outputs are the named tensors; nothing is said of shapes inside."""
    copied = ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    del copied.graph.value_info[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copied


def _at_batch_one(model: ModelProto, name: str, batch: int) -> ModelProto:
    """Set the batch of the input, and that of reshapes to a constant shape that starts with it, to 1."""
    copied = ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    entry = next(value for value in graph.input if value.name == name)
    entry.type.tensor_type.shape.dim[0].dim_value = 1
    if batch == 1:
        return copied
    constants = constants_of(graph)
    for at, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            if len(shape) and shape[0] == batch:
                shape[0] = 1
                node.input[1] = f"{node.input[1]}_single_{at}"  # a shape of its own: others may read the constant too
                graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    return copied
