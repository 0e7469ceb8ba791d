"""onnxsim: constants folded, dead nodes gone."""

from __future__ import annotations

import logging

from onnx import ModelProto

from msn_deploy.core.optional import require
from msn_deploy.graph.files import check, input_of

_LOG = logging.getLogger(__name__)


def simplify(model: ModelProto) -> ModelProto:
    """Return the simplified graph, or the graph itself (with a line in the log) where onnxsim fails on it.

    The caller compares outputs before it trusts the result: onnxsim has changed them before (its issue 1284).
    """
    onnxsim = require("onnxsim", step="export")
    try:
        simplified, _ = onnxsim.simplify(model)
        check(simplified, source="the simplified graph")
    except Exception as cause:  # onnxsim raises RuntimeError, ValueError and its own C++ errors alike
        _LOG.warning("kept the unsimplified graph: onnxsim failed (%s: %s)", type(cause).__name__, cause)
        return model
    if input_of(simplified, source="after") != input_of(model, source="before"):
        _LOG.warning("kept the unsimplified graph: onnxsim changed the input")
        return model
    return simplified
