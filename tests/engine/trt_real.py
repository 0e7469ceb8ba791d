"""Loads one release's own Python bindings over libraries with nothing in them, and says what it finds, as JSON.

python tests/engine/trt_real.py MODULE [NULL_LIBRARY]: MODULE is tensorrt_bindings, or tensorrt_rtx, which brings its
library. In a process of its own: a process takes one TensorRT. To record a release in trt_api.json, write what this
prints to FOLDER/RELEASE.json for each of them, and see trt_api.py.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msn_deploy.core.errors import MsnDeployError


def members(kind: type) -> list[str]:
    """Return the public names of a class; of an enum its members, each with its value."""
    values = getattr(kind, "__members__", None)
    if values is None:
        return [name for name in dir(kind) if not name.startswith("_")]
    return [f"{name}={int(value)}" for name, value in values.items()]


def names(trt: Any) -> dict[str, list[str]]:
    """Return class -> names, the module itself as ""; the severities of messages, which have no name there, too."""
    top = [name for name in dir(trt) if not name.startswith("_")]
    classes = {name: members(kind) for name in top if isinstance(kind := getattr(trt, name), type)}
    return {"": top, **classes, "ILogger.Severity": members(trt.ILogger.Severity)}


def said(act: Callable[[], object]) -> list[str]:
    """Return what our code makes of this: our error's class and text, "done" and the result, or someone else's."""
    try:
        return ["done", repr(act())]
    except MsnDeployError as error:
        return [type(error).__name__, str(error)]
    except Exception as error:
        return [f"not ours: {type(error).__name__}", str(error)]


def build(trt: Any) -> object:
    """Start a build of a network that nobody reads."""
    from msn_deploy.core.model_info import TensorSpec
    from msn_deploy.core.progress import silent
    from msn_deploy.engine.backends import pick_backend
    from msn_deploy.engine.build_options import BuildOptions
    from msn_deploy.engine.tensors import parse_shapes
    from msn_deploy.engine.trt_build import build_plan

    backend = pick_backend("tensorrt", None, load=lambda module, *, step: trt)
    given = (TensorSpec("left", "uint8", (None, 8, None, 3)), TensorSpec("right", "float16", (None, 3)))
    made = tuple(TensorSpec(dtype, dtype, None) for dtype in ("float32", "int64", "bool"))
    model: Any = SimpleNamespace(path=Path("net.onnx"), data=b"a network", nodes=(), inputs=given, outputs=made)
    options = BuildOptions(batch=4, shapes=(parse_shapes("left=1x8x8x3:2x8x16x3:4x8x32x3"),))
    return build_plan(model, backend, None, "fp32", options, silent)


def load(trt: Any) -> object:
    """Load a plan of this release that nobody reads."""
    from msn_deploy.engine.trt import TrtRunner

    facts = {"backend": "tensorrt", "backend_version": trt.__version__, "precision": "fp16", "info": None}
    traits = {"dla_core": None, "version_compatible": False, "plugins": ()}
    plan: Any = SimpleNamespace(path=Path("net.engine"), data=b"a plan", **facts, **traits)
    cuda: Any = SimpleNamespace(close=lambda: None)
    return TrtRunner(plan, trt=trt, cuda=lambda **options: cuda)


def inspect(trt: Any) -> object:
    """Inspect a plan that nobody reads."""
    from msn_deploy.engine.build_log import logger_of
    from msn_deploy.engine.inspector import inspect_plan

    return inspect_plan(trt, logger_of(trt)[0], b"a plan")


def watch(trt: Any) -> dict[str, Any]:
    """Make a logger and a progress monitor of the release's classes, and call them as TensorRT would."""
    from msn_deploy.engine.build_log import logger_of, monitor_of

    logger, messages = logger_of(trt)
    messages.start()
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    seen: list[tuple[float, str]] = []

    def progress(done: float, total: float, what: str) -> None:
        if done == total:
            raise KeyboardInterrupt
        seen.append((done, what))

    monitor = monitor_of(trt, messages, progress)
    if monitor is not None:
        assert isinstance(monitor, trt.IProgressMonitor)
        monitor.phase_start("building", None, 2)
        going_on = [monitor.step_complete("building", step) for step in (0, 1)]
        monitor.phase_finish("building")
    return {
        "is_logger": isinstance(logger, trt.ILogger),
        "warnings": messages.warnings(),
        "progress": monitor and {"seen": seen, "going_on": going_on, "held": type(messages.held).__name__},
    }


def allocate(trt: Any) -> list[Any]:
    """Make an allocator of the release's class and call it as TensorRT would; returns addresses and the shape."""
    import numpy as np

    from msn_deploy.engine.build_log import logger_of
    from msn_deploy.engine.cuda import Pair
    from msn_deploy.engine.trt import DecidedOutputs, allocator_of

    cuda: Any = SimpleNamespace(allocate=lambda shape, dtype: Pair(np.zeros(shape, dtype), shape[0]))
    outputs = DecidedOutputs(cuda, {"found": "int64"})
    allocator = allocator_of(trt, outputs, logger_of(trt)[1])
    assert isinstance(allocator, trt.IOutputAllocator)
    addresses = [allocator.reallocate_output("found", 0, size, 256) for size in (40, 8, 81)]
    allocator.notify_shape("found", trt.Dims((2, 5)))
    return [*addresses, outputs.last("found")[0]]


def calibrate(trt: Any) -> dict[str, Any] | None:
    """Make a calibrator of the release's class, and let the builder's configuration take it."""
    from msn_deploy.engine.calibration_table import calibrator_of

    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        return None
    calibrator = calibrator_of(trt, "TRT-8502-EntropyCalibration2\nx: 3f800000\n", batch=3)
    return {
        "is_theirs": isinstance(calibrator, trt.IInt8EntropyCalibrator2),
        "algorithm": str(calibrator.get_algorithm()),
        "cache": calibrator.read_calibration_cache().decode(),
        "batch": calibrator.get_batch_size(),
    }


def over_null(trt: Any, library: str) -> dict[str, Any]:
    """Return what our code makes of a TensorRT that answers null: to a first call, or only to the calls after it."""
    from msn_deploy.engine.trt_build import is_weakly_typed, mask

    kinds = trt.NetworkDefinitionCreationFlag
    found = {
        "weak": is_weakly_typed(trt),
        "mask": mask(kinds, "EXPLICIT_BATCH", "STRONGLY_TYPED"),
        **watch(trt),
        "allocated": allocate(trt),
        "calibrated": calibrate(trt),
    }
    hollow = ctypes.c_int.in_dll(ctypes.CDLL(library), "hollow")
    for key, hollow.value in (("null", 0), ("hollow", 1)):
        found[key] = {act.__name__: said(lambda act=act: act(trt)) for act in (build, load, inspect)}
    return found


def main(module: str, *library: str) -> None:
    """Print what there is."""
    trt = importlib.import_module(module)
    found = {"version": trt.__version__, "classes": names(trt)}
    print(json.dumps(found | (over_null(trt, *library) if library else {}), indent=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
