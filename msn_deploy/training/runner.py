"""A checkpoint in torch itself, eager or compiled: what a runtime has to beat."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import recipe_from_dict
from msn_deploy.engine.runner import check_images


def torch_provider(provider: str, *, compiled: bool) -> str:
    """Return what a timing profile calls torch on the device of a provider: "torch", "torch-cuda-compile", ...

    Raises InputError for a provider that is no device of torch's.
    """
    if provider not in ("cpu", "cuda"):
        raise InputError(f"a checkpoint runs in torch, on cpu or cuda, not on {provider}.\nExport it first.")
    return f"torch{'-cuda' * (provider == 'cuda')}{'-compile' * compiled}"


class TorchRunner:
    """A Runner over torch. Not `nets.predict.logits_of`, which walks through all modules in every call."""

    def __init__(self, path: Path, *, provider: str, batch: int, threads: int | None = None) -> None:
        """Load a checkpoint; compile it too if asked for, for batches of `batch`, so that no query pays for that.

        provider: what `torch_provider` returns. threads: of the whole process.
        Raises InputError, MissingDevice, and MissingDependency without torch or a C++ compiler that it can use.
        """
        torch = require("torch", step="bench of a checkpoint")
        from msn_deploy.training import load_checkpoint

        self._torch: Any = torch
        self._device = "cuda" if "-cuda" in provider else "cpu"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise MissingDevice("torch sees no CUDA GPU on this machine.\nChoose `--device cpu`.")
        if threads is not None:
            torch.set_num_threads(threads)
        self.path, self.name, self.input_name = path, path.name, "input"
        model, info = load_checkpoint(path)
        self.info: ModelInfo | None = info
        self.input_shape: tuple[int | None, ...] = (
            None,
            *recipe_from_dict(info.recipe, source=str(path)).network_input,
        )
        self._model: Any = model.to(self._device)
        if provider.endswith("-compile"):
            self._compile(batch)

    def _compile(self, batch: int) -> None:
        from torch._inductor import config

        sizes = [int(size or 0) for size in self.input_shape[1:]]
        try:
            with warnings.catch_warnings(), config.patch(compile_threads=1):  # no workers that outlive this
                warnings.simplefilter("ignore")  # torch's about its own deprecated parts
                self._model = self._torch.compile(self._model, dynamic=False)
                self.run(np.zeros((batch, *sizes), np.float32))
        except Exception as cause:  # the compiler's classes share no base below Exception
            first = (str(cause).splitlines() or [type(cause).__name__])[0][:150]
            raise MissingDependency(
                f"torch.compile does not work here: {first}.\nInstall a C++ compiler (g++), or leave `--compile` out."
            ) from cause

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, C, H, W) to float32 (N, classes), copies to and from the device included."""
        check_images(batch, self.input_shape, name=self.name)
        with self._torch.inference_mode():
            logits: NDArray[np.float32] = self._model(self._torch.from_numpy(batch).to(self._device)).cpu().numpy()
        return logits

    def close(self) -> None:
        """Free the network; it cannot run afterwards."""
        self._model = None
