"""A model's graph as it is quantised: for `calibrate`, for training under INT8, and for what is measured of both."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msn_deploy.engine.ort import run_on_one_thread

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.data.feeds import Samples
    from msn_deploy.model.opened import OpenModel

FIRST_OPSET = 13  # with a scale per channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisable:
    """A graph that is ready for the Q/DQ pairs of INT8."""

    graph: ModelProto
    equalized: dict[str, int]
    """How many channels in front of a layer were brought to another size."""
    key: str
    """What the calibration cache calls the graph."""


def constants_computed(model: OpenModel, *, opset: int = FIRST_OPSET) -> ModelProto:
    """Return the graph of a model without constants that are computed, in that opset at least."""
    from msn_deploy.model.opset import to_opset  # late, as is the next: they import onnx
    from msn_deploy.quant.fp32_nodes import fold_constants

    written = next((entry.version for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    graph = model.proto if written >= opset else to_opset(copy.deepcopy(model.proto), opset)
    return fold_constants(graph, load=run_on_one_thread)


def quantisable(model: OpenModel, samples: Samples) -> Quantisable:
    """Return the graph of a model with its constants computed and its channels of a size that suits INT8.

    samples: what it is calibrated on.
    """
    from msn_deploy.quant.equalize import equalize

    before = constants_computed(model)
    graph, equalized = equalize(before, samples, load=run_on_one_thread)
    return Quantisable(graph=graph, equalized=equalized, key=model.sha256 + ", equalized" * (graph is not before))


def equalized_text(layer: str, count: int) -> str:
    """Return what is said of a layer whose channels moved."""
    channels = f"{count} channel{'s' * (count != 1)} that it reads"
    return f"{layer}: {channels} brought to the size of the others, without changing any output"
