"""What is a runner, and which one serves a model file?"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msn_deploy.core.artifacts import open_input, read_sidecar
from msn_deploy.core.errors import InputError, MissingDevice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from msn_deploy.core.model_info import ModelInfo

PROVIDERS = ("cpu", "cuda", "tensorrt")


class Runner(Protocol):
    """A loaded network that maps a batch of images to logits.

    name: of its file. input_shape: N, C, H, W; None where the graph leaves the size open. info: what the file says
    of itself, None if it says nothing.
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def input_name(self) -> str: ...
    @property
    def input_shape(self) -> tuple[int | None, ...]: ...
    @property
    def info(self) -> ModelInfo | None: ...

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, C, H, W) to float32 (N, classes), for any N. Raises InputError if the shape does not fit."""
        ...

    def close(self) -> None:
        """Free what the runner holds; it cannot run afterwards."""
        ...


def load_runner(path: Path, *, threads: int | None = None, provider: str = "cpu", fuse_norms: bool = True) -> Runner:
    """Load a model file into the runner that serves its kind.

    threads: of one inference, None = the runtime's choice. provider: one of PROVIDERS. fuse_norms: let the runtime
    merge normalisation layers into convolutions; False measures a network as it is written.
    Raises InputError for a file that cannot be used, MissingDependency or MissingDevice for what is not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".engine":
        raise _engine_here(path)
    if suffix != ".onnx":
        raise InputError(
            f"{path} cannot be run: its name ends in {suffix or 'nothing'!r}; .onnx files are accepted.\n"
            "Make one with `msn-deploy export`."
        )
    from msn_deploy.engine.ort import OrtRunner

    return OrtRunner(path, threads=threads, provider=provider, fuse_norms=fuse_norms)


def _engine_here(path: Path) -> MissingDevice:
    """Say where an engine runs; raises InputError if there is no such file."""
    with open_input(path):
        pass
    source, loader = "the ONNX file it was built from", "trtexec"
    with suppress(InputError):  # an engine from elsewhere has no sidecar; the advice is then less exact
        side = read_sidecar(path)
        source = next((parent.file for parent in side.parents if parent.role == "onnx"), source)
        loader = "tensorrt_rtx" if side.facts.get("backend") == "tensorrt-rtx" else loader
    return MissingDevice(
        f"{path.name} runs only on the GPU and with the TensorRT it was built for; this version runs ONNX files.\n"
        f"On the device type: {loader} --loadEngine={path.name}\n"
        f"Here, use {source}."
    )
