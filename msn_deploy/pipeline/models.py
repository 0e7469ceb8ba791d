"""A model file of any kind that the user named: opened once, then run, and described by what its graph tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Runtime
from msn_deploy.engine import Runner, open_runnable, runner_of
from msn_deploy.engine.cuda import Wait
from msn_deploy.engine.load import Opened
from msn_deploy.model.opened import OpenModel
from msn_deploy.training.runner import TorchRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a model file is. None where a file of its kind does not tell."""

    sha256: str
    precision: str | None
    """What its graph computes in."""
    graph: str | None
    """The structural hash of its graph, or of the graph that an engine was built from."""
    norms_left: int | None
    """How many normalisation layers the graph of an ONNX file has."""
    runtime: Runtime | None = None
    """What the INT8 of an ONNX file is laid out for."""
    changed: bool = False
    """Another tool has changed the graph: what the file says of itself was written for another one."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """opened: an ONNX file or engine; None for a checkpoint, which its runner opens."""

    path: Path
    opened: Opened | None

    @property
    def keeps_norms(self) -> bool:
        """Whether it is an ONNX file with normalisations that are to be measured as they are written."""
        info = self.opened.info if isinstance(self.opened, OpenModel) else None
        return info is not None and not info.folded and info.norm != "none"

    def runner(
        self,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        batch: int = 1,
        fuse_norms: bool = True,
        cuda_graph: bool = False,
        wait: Wait | None = None,
        mapped: bool = False,
    ) -> Runner:
        """Return a new runner. See `runner_of`, and TorchRunner for a checkpoint.

        provider: of an ONNX file, one of PROVIDERS; of a checkpoint, one of `torch_provider`.
        """
        if self.opened is None:
            return TorchRunner(self.path, provider=provider, batch=batch, threads=threads)
        return runner_of(
            self.opened,
            threads=threads,
            provider=provider,
            fuse_norms=fuse_norms,
            cuda_graph=cuda_graph,
            wait=wait,
            mapped=mapped,
        )

    def described(self, runner: Runner) -> Described:
        """Describe the file; `runner` is one of its own."""
        model, info = self.opened, runner.info
        if isinstance(model, OpenModel):
            return Described(
                sha256=model.sha256,
                precision=model.precision,
                graph=model.structure,
                norms_left=model.norms,
                runtime=model.runtime,
                changed=model.changed,
            )
        return Described(
            sha256=model.sha256 if model else sha256_of(self.path),
            precision=model.precision if model else info.precision if info else None,
            graph=info.graph if info else None,
            norms_left=None,
        )


def open_file(path: Path, *, trust: bool = False, plugins: Sequence[Path] = ()) -> ModelFile:
    """Open an ONNX file or an engine, once; a checkpoint is opened by each of its runners.

    trust: load an engine from elsewhere. plugins: libraries with operators that an engine needs. Raises InputError,
    MissingDependency or MissingDevice.
    """
    if path.suffix.lower() == ".safetensors":
        if plugins:
            raise InputError(f"`--plugins` gives TensorRT operators, and {path} is not an engine.\nLeave it out.")
        return ModelFile(path, None)
    return ModelFile(path, open_runnable(path, trust=trust, plugins=plugins))


def onnx_of(engine: Path) -> Path | None:
    """Return the ONNX file that an engine was built from, if it is beside it, unchanged."""
    parent = next((each for each in read_sidecar(engine).parents if each.role == "onnx"), None)
    if parent is None:
        return None
    path = engine.with_name(Path(parent.file).name)
    return path if path.is_file() and sha256_of(path) == parent.sha256 else None
