"""What is a runner, and which one serves a model file?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msn_deploy.core.errors import InputError

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


def load_runner(
    path: Path,
    *,
    threads: int | None = None,
    provider: str = "cpu",
    fuse_norms: bool = True,
    trust: bool = False,
    cuda_graph: bool = False,
) -> Runner:
    """Load a model file into the runner that serves its kind.

    Of an ONNX file: threads: of one inference, None = the runtime's choice; provider: one of PROVIDERS; fuse_norms: let
    the runtime merge normalisation layers into convolutions; False measures a network as it is written.
    Of an engine, which is checked before it is loaded: trust: add it to the local list of trusted plans; cuda_graph:
    queue the network with one call.
    Raises InputError for a file that cannot be used, MissingDependency or MissingDevice for what is not there.
    """
    suffix = path.suffix.lower()
    if suffix == ".engine":
        from msn_deploy.engine.preflight import preflight
        from msn_deploy.engine.trt import TrtRunner

        return TrtRunner(preflight(path, trusting=trust), cuda_graph=cuda_graph)
    if suffix != ".onnx":
        raise InputError(
            f"{path} cannot be run: its name ends in {suffix or 'nothing'!r}; .onnx and .engine files are accepted.\n"
            "Make one with `msn-deploy export`."
        )
    from msn_deploy.engine.ort import OrtRunner

    return OrtRunner(path, threads=threads, provider=provider, fuse_norms=fuse_norms)


def check_images(batch: NDArray[np.float32], input_shape: tuple[int | None, ...], *, name: str) -> None:
    """Raise InputError if these are no images for a network of that input, or none at all."""
    if batch.dtype != "float32":
        raise InputError(f"{name} is fed {batch.dtype}; images have to be prepared to float32 first.")
    fits = batch.ndim == len(input_shape) and all(
        wanted in (None, got) for wanted, got in zip(input_shape[1:], batch.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(
            f"model wants {_sizes(input_shape[1:])} images, the data gives {_sizes(batch.shape[1:])}; "
            f"{name} was made for other data.\n"
            "Give the data it was trained on, or export it again with a fitting `--input-shape`."
        )
    if len(batch) == 0:
        raise InputError(f"{name} is given no image at all.\nCheck the data folder.")


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)
