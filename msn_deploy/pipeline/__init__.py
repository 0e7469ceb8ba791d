"""The map: what each command does, composed from the stages. Paths in; files and a frozen result out.

train (training/loop.py) -> export -> calibrate | to FP16 -> build_engine -> evaluate, bench, infer; demo runs them all.
One file per verb, so that `ls` shows the map. The verbs are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msn_deploy.pipeline.bench import bench
    from msn_deploy.pipeline.build import build_engine
    from msn_deploy.pipeline.calibrate import calibrate
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.export import export_onnx
    from msn_deploy.pipeline.infer import infer

__all__ = ["bench", "build_engine", "calibrate", "evaluate", "export_onnx", "infer"]
_HOME = {"build_engine": "build", "export_onnx": "export"}  # elsewhere the file is named after its verb


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"msn_deploy.pipeline.{_HOME.get(name, name)}"), name)
