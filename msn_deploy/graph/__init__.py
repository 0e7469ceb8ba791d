"""From a torch network to one exactly folded ONNX graph, with its certificate: every step a function on graphs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from msn_deploy.graph.simplify import simplify, simplifying
from msn_deploy.model.parity import Rung

if TYPE_CHECKING:
    from msn_deploy.graph.certificate import Certificate, CertifiedNorm, certify
    from msn_deploy.graph.export import to_onnx
    from msn_deploy.graph.fold import fold_graph

__all__ = [
    "Certificate",
    "CertifiedNorm",
    "Rung",
    "certify",
    "fold_graph",
    "simplify",
    "simplifying",
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
