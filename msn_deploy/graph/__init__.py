"""From a torch network to ONNX, and from there to the precision that a device runs: every step a function on graphs.

What only a workstation does (exporting needs torch, folding needs onnx_ir) is imported on first use, so that a device
calibrates without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from msn_deploy.graph.calibrate import calibrate_ranges
from msn_deploy.graph.ladder import Rung
from msn_deploy.graph.precision import to_fp16
from msn_deploy.graph.quantize import quantize
from msn_deploy.graph.scales import METHODS
from msn_deploy.graph.simplify import simplify, simplifying

if TYPE_CHECKING:
    from msn_deploy.graph.certificate import Certificate, CertifiedNorm, certify
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.graph.fold import fold_graph

__all__ = [
    "METHODS",
    "Certificate",
    "CertifiedNorm",
    "Rung",
    "calibrate_ranges",
    "certify",
    "fold_graph",
    "quantize",
    "simplify",
    "simplifying",
    "to_fp16",
    "to_onnx",
]
_LATE = {
    "Certificate": "certificate",
    "CertifiedNorm": "certificate",
    "certify": "certificate",
    "fold_graph": "fold",
    "to_onnx": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"msn_deploy.graph.{_LATE[name]}"), name)
