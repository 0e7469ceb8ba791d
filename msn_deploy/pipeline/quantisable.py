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
    from msn_deploy.quant.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisable:
    """A graph that is ready for the Q/DQ pairs of INT8."""

    graph: ModelProto
    equalized: dict[str, int]
    """How many channels in front of a layer were brought to another size."""
    key: str
    """What the calibration cache calls the graph."""


def constants_computed(model: OpenModel, layout: Layout | None = None) -> ModelProto:
    """Return the graph of a model without constants that are computed, in an opset that the layout can be written in.

    layout: None is INT8 for TensorRT.
    """
    from msn_deploy.model.opset import to_opset  # late, as are the next: they import onnx
    from msn_deploy.quant.fp32_nodes import fold_constants
    from msn_deploy.quant.layout import TENSORRT

    opset = (layout or TENSORRT).opset
    written = next((entry.version for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    graph = model.proto if written >= opset else to_opset(copy.deepcopy(model.proto), opset)
    return fold_constants(graph, load=run_on_one_thread)


def quantisable(graph: ModelProto, samples: Samples, *, sha256: str) -> Quantisable:
    """Return a graph with its channels of a size that suits INT8.

    graph: of `constants_computed`. samples: what it is calibrated on. sha256: of the model that it is of.
    """
    from msn_deploy.quant.equalize import equalize

    made, equalized = equalize(graph, samples, load=run_on_one_thread)
    return Quantisable(graph=made, equalized=equalized, key=sha256 + ", equalized" * (made is not graph))


def equalized_text(layer: str, count: int) -> str:
    """Return what is said of a layer whose channels moved."""
    channels = f"{count} channel{'s' * (count != 1)} that it reads"
    return f"{layer}: {channels} brought to the size of the others, without changing any output"
