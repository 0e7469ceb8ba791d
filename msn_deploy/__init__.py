"""msn-deploy: train small CNNs with Mean Spectral Normalization, fold, quantise, build and measure them for a Jetson.

`import msn_deploy` imports nothing heavy; each public name below is loaded from its module on first use. Type checkers
read `__init__.pyi`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# ONNX Runtime sends telemetry from inside the process that is being measured, and looks at this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOME = {
    "MSNConv1d": "msn_deploy.msn",
    "MSNConv2d": "msn_deploy.msn",
    "MSNConv3d": "msn_deploy.msn",
    "MSNConvTranspose1d": "msn_deploy.msn",
    "MSNConvTranspose2d": "msn_deploy.msn",
    "MSNConvTranspose3d": "msn_deploy.msn",
    "MSNLinear": "msn_deploy.msn",
    "benchmark": "msn_deploy.pipeline.bench",
    "build_engine": "msn_deploy.pipeline.build",
    "calibrate": "msn_deploy.pipeline.calibrate",
    "compare": "msn_deploy.bench.compare",
    "convert": "msn_deploy.msn",
    "diff": "msn_deploy.pipeline.diff",
    "evaluate": "msn_deploy.pipeline.evaluate",
    "export": "msn_deploy.pipeline.export",
    "export_onnx": "msn_deploy.pipeline.export",
    "fold": "msn_deploy.msn",
    "load": "msn_deploy.pipeline.load",
    "load_recipe": "msn_deploy.core.recipes",
    "load_runner": "msn_deploy.engine",
    "measure": "msn_deploy.bench.measure",
    "progress_bar": "msn_deploy.core.progress",
    "quantize": "msn_deploy.quant.quantize",
    "quantize_aware": "msn_deploy.training.qat",
    "to_fp16": "msn_deploy.quant.precision",
    "train": "msn_deploy.pipeline.train",
    "verify_folder": "msn_deploy.pipeline.verify",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
