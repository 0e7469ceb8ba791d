"""Which runner serves a model file? The file is opened first, once; the runner is made from what was opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import builtin_folder
from msn_deploy.engine.cuda import Wait
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.engine.plan import Plan
from msn_deploy.engine.preflight import preflight
from msn_deploy.engine.runner import Runner
from msn_deploy.engine.trt import TrtRunner
from msn_deploy.model.opened import OpenModel, open_model

Opened: TypeAlias = OpenModel | Plan
RUNNABLE = (".onnx", ".engine", ".safetensors")
_WANTED = f"Give a file that ends in {', '.join(RUNNABLE)}."
"""How the names of model files end; the last is a checkpoint, which torch runs."""
_STEP = "running an ONNX file"


def open_runnable(path: Path, *, trust: bool = False, plugins: Sequence[Path] = ()) -> Opened:
    """Open an ONNX file, or an engine that runs here.

    trust: add the engine to the local list of trusted plans. plugins: libraries with operators that the engine needs.
    Raises InputError for a file that cannot be used, MissingDependency or MissingDevice for what is not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".engine":
        return preflight(path, trusting=trust, plugins=plugins)
    if suffix != ".onnx":
        if not os.path.exists(path):
            is_recipe = path.name == str(path) and (builtin_folder("models") / f"{path}.toml").is_file()
            hint = f"That is a recipe: `msn-deploy train {path}` makes runs/{path}.safetensors."
            raise InputError(f"{path} does not exist.\n{hint if is_recipe else _WANTED}")
        what = "is a folder" if os.path.isdir(path) else "cannot be run by that name"
        raise InputError(f"{path} {what}.\n{_WANTED}")
    if plugins:
        raise InputError(f"`--plugins` gives TensorRT operators, and {path} is not an engine.\nLeave it out.")
    return open_model(path, step=_STEP)


def runner_of(
    model: Opened,
    *,
    threads: int | None = None,
    provider: str = "cpu",
    fuse_norms: bool = True,
    cuda_graph: bool = False,
    wait: Wait | None = None,
    mapped: bool = False,
) -> Runner:
    """Return a runner of an opened model.

    Args:
        model: What `open_runnable` returned.
        threads: Of one inference of an ONNX file; None leaves the choice to the runtime.
        provider: Of an ONNX file, one of PROVIDERS.
        fuse_norms: Let the runtime merge normalisation layers into convolutions. False measures an ONNX file as it is
            written.
        cuda_graph: Queue an engine's network with one call.
        wait: How an engine's thread waits for the GPU, "spin" or "sleep"; None leaves it to CUDA.
        mapped: Let an engine read and write the host's memory (zero-copy), as a Jetson's GPU can without a detour.

    Raises:
        InputError: The model does not load, or one of the last three is asked of an ONNX file.
        MissingDependency: The runtime, or its provider, is not installed.
        MissingDevice: The GPU is not there, or cannot map the host's memory.
    """
    if isinstance(model, Plan):
        return TrtRunner(model, cuda_graph=cuda_graph, wait=wait, mapped=mapped)
    if cuda_graph or wait or mapped:
        raise InputError(f"{model.path} is not an engine; CUDA graphs, waits and mapped buffers are for engines.")
    return OrtRunner(model, threads=threads, provider=provider, fuse_norms=fuse_norms)


def load_runner(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    provider: str = "cpu",
    fuse_norms: bool = True,
    trust: bool = False,
    cuda_graph: bool = False,
    wait: Wait | None = None,
    mapped: bool = False,
    plugins: Sequence[Path] = (),
) -> Runner:
    """Load a model file into the runner that serves its kind: `open_runnable`, then `runner_of`, which see.

    Examples:
        >>> import msn_deploy, numpy as np
        >>> runner = msn_deploy.load_runner("runs/cnn3_msn.onnx")
        >>> (logits,) = runner.run({"input": np.zeros((1, 1, 28, 28), np.float32)}).values()
        >>> runner.close()
        >>> logits.shape
        (1, 10)
    """
    model = open_runnable(Path(path), trust=trust, plugins=plugins)
    return runner_of(
        model,
        threads=threads,
        provider=provider,
        fuse_norms=fuse_norms,
        cuda_graph=cuda_graph,
        wait=wait,
        mapped=mapped,
    )
