"""The one door to optional packages: import at the moment of need, or say how to get them."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from types import ModuleType

from msn_deploy.core.errors import MissingDependency
from msn_deploy.core.home import home_folder


def install(extra: str) -> str:
    """Return the command that installs an extra. The package is not on an index yet, so that it needs a checkout."""
    return f"pip install '.[{extra}]'   (in a checkout of msn-deploy)"


_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "matplotlib": "train",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "onnxsim": "export",
    "cv2": "video",
    "pycocotools": "detection",
    "tensorboard": "tensorboard",
    "tensorrt_rtx": "rtx",
}
_HOW_TO_GET = {
    **{module: f"Install it with: {install(extra)}" for module, extra in _EXTRAS.items()},
    "onnxruntime": f"Install it with: {install('runtime')}, or the extra `jetson` on a Jetson",
    "yaml": "Install it with: pip install pyyaml",
    "tensorrt": (
        "On a Jetson it comes with JetPack: sudo apt install tensorrt python3-libnvinfer\n"
        "(a venv needs --system-site-packages; do not pip install tensorrt there)."
    ),
    "pycuda": f"Install it on the device, where it compiles against JetPack's CUDA: {install('jetson')}",
}


def require(module: str, *, step: str) -> ModuleType:
    """Import an optional package, or say which step needs it and how to get it.

    The true cause stays visible: a missing libnvinfer.so is not a missing package.
    Raises MissingDependency (exit 3).
    """
    if module == "torch":
        _give_torch_a_folder()
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise missing(module, step=step, cause=str(cause)) from cause


def _give_torch_a_folder() -> None:
    """Keep what torch compiles in the user's own cache.

    It makes its folder as soon as it trains or exports: /tmp/torchinductor_USER, which stays for ever and which another
    user can make first, with code in it.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = home_folder().absolute() / "torchinductor"
        with suppress(OSError):  # no home: /tmp then
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def missing(module: str, *, step: str, cause: str) -> MissingDependency:
    """Return the error for a module whose import failed, here or in another process, with that `cause`."""
    package = module.partition(".")[0]
    hint = _HOW_TO_GET.get(package, f"Install it with: pip install {package}")
    return MissingDependency(f"`{step}` needs {package}, which could not be imported ({cause}).\n{hint}")


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None; does not import it."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
