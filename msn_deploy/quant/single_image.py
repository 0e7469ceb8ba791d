"""A network that runs one image at a time and returns tensors from its inside.

ONNX Runtime's kernels may round differently for another batch. What is measured image by image, on one graph of batch
1, is the same to the bit whatever batch the model was exported with and in whatever order the images come.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from msn_deploy.core.errors import InputError, shorten
from msn_deploy.core.optional import require
from msn_deploy.model.graphs import constants_of
from msn_deploy.model.opened import inputs_of, only_input

_LOG = logging.getLogger(__name__)
_FATAL = 4
_TOLERANCE = 1e-3  # of the largest value: two batch sizes round differently, a wrong reshape is another tensor


class SingleImage:
    """Runs a model on single images; `image_shape` is that of its input without the batch."""

    def __init__(self, model: ModelProto, tensors: Sequence[str]) -> None:
        """Load the model at batch 1, with the named tensors as its outputs.

        A model of a fixed batch B > 1 whose graph holds B elsewhere than in its input and its reshapes runs as it
        is, on B copies of each image, which the log says. Raises InputError if it does not run.
        """
        self._input, shape = only_input(inputs_of(model), source="the model")
        self.image_shape = shape[1:]
        self._tensors = list(tensors)
        self._inside = [name for name in tensors if name != self._input]
        self._batch = 1
        self._session: Any = None
        fixed = shape[0] or 1
        if not self._inside:
            return
        if fixed > 1 and not self._is_same_as(model, fixed):
            _LOG.warning(
                "the network only runs in batches of %d: each image is run %d times to calibrate", fixed, fixed
            )
            self._batch = fixed
            self._session = _session(_with_outputs(model, self._inside))
        elif fixed == 1:
            self._session = _session(_at_batch_one(_with_outputs(model, self._inside), self._input, fixed))

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the tensors by name for one image (1, C, H, W). Raises InputError if the network does not take it."""
        found = {self._input: image} if self._input in self._tensors else {}
        if self._inside:
            fed = np.repeat(image, self._batch, axis=0) if self._batch > 1 else image
            found |= _run(self._session, self._inside, {self._input: fed})
        return found

    def _is_same_as(self, model: ModelProto, batch: int) -> bool:
        """Load the model at batch 1, and compare it on one image with the model as it is."""
        whole = _with_outputs(model, self._inside)
        rng = np.random.default_rng(0)
        image = rng.standard_normal((1, *(size or 1 for size in self.image_shape)), dtype=np.float32)
        truth = _run(_session(whole), self._inside, {self._input: np.repeat(image, batch, axis=0)})
        try:
            self._session = _session(_at_batch_one(whole, self._input, batch))
            single = _run(self._session, self._inside, {self._input: image})
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


def _session(model: ModelProto) -> Any:
    ort: Any = require("onnxruntime", step="calibrate")
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    ort.set_default_logger_severity(_FATAL)
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as cause:  # ONNX Runtime's classes share no base below Exception
        raise InputError(f"ONNX Runtime {ort.__version__} cannot load the network: {shorten(cause)}.") from cause


def _run(session: Any, names: list[str], feed: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as cause:  # as at loading
        raise InputError(f"the network loads but does not run: {shorten(cause)}.\nExport it again.") from cause
