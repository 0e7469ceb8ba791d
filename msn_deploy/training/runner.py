"""A network in torch itself: a checkpoint, eager or compiled, and the logits of a module in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.errors import MissingDependency, MissingDevice, first_line
from msn_deploy.core.model_info import ModelInfo, TensorSpec
from msn_deploy.core.optional import require
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.engine.runner import check_feeds, run_images

if TYPE_CHECKING:
    from torch import nn


class TorchRunner:
    """A Runner over torch. Not `logits_of`, which walks through all modules in every call."""

    batch_range: tuple[int, int | None] = (1, None)

    def __init__(self, path: Path, *, provider: str, batch: int = 1, threads: int | None = None) -> None:
        """Load a checkpoint; compile it too if asked for, for batches of `batch`, so that no query pays for that.

        provider: what `torch_provider` of pipeline/ returns. threads: of the whole process.
        Raises InputError, MissingDevice, and MissingDependency without torch or a C++ compiler that it can use.
        """
        torch = require("torch", step="running a checkpoint")
        from msn_deploy.training.checkpoint import load_checkpoint

        self._torch: Any = torch
        self._device = "cuda" if "-cuda" in provider else "cpu"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise MissingDevice("torch sees no CUDA GPU on this machine.\nChoose `--device cpu`.")
        if threads is not None:
            torch.set_num_threads(threads)
        self.path, self.name = path, path.name
        model, info = load_checkpoint(path)
        self.info: ModelInfo | None = info
        recipe = recipe_from_dict(info.recipe, source=str(path))
        sizes = recipe.network_input
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("input", "float32", (None, *sizes)),)
        self.outputs: tuple[TensorSpec, ...] = (output_of(recipe, len(info.classes)),)
        self._model: Any = model.to(self._device)
        if provider.endswith("-compile"):
            self._compile((batch, *sizes))

    def _compile(self, shape: tuple[int, ...]) -> None:
        from torch._inductor import config

        try:
            with warnings.catch_warnings(), config.patch(compile_threads=1):  # no workers that outlive this
                warnings.simplefilter("ignore")  # torch's about its own deprecated parts
                self._model = self._torch.compile(self._model, dynamic=False)
                run_images(self, np.zeros(shape, np.float32))
        except Exception as cause:  # the compiler's classes share no base below Exception
            raise MissingDependency(
                f"torch.compile does not work here: {first_line(cause, 150)}.\n"
                "Install a C++ compiler (g++), or leave `--compile` out."
            ) from cause

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See Runner; copies to and from the device are included."""
        check_feeds(feeds, self.inputs, name=self.name)
        given = [self._torch.from_numpy(feeds[spec.name]).to(self._device) for spec in self.inputs]
        with self._torch.inference_mode():
            made = self._model(*given)
        each = made if isinstance(made, tuple) else (made,)
        return {spec.name: tensor.cpu().numpy() for spec, tensor in zip(self.outputs, each, strict=True)}

    def close(self) -> None:
        """Free the network; it cannot run afterwards."""
        self._model = None


def output_of(recipe: Recipe, classes: int) -> TensorSpec:
    """Return what a recipe's network gives, see `nets.build_net`; a generator's images have no shape here."""
    if recipe.gan is not None:
        return TensorSpec("logits", "float32", None)
    positioned: dict[str, tuple[int | None, ...]] = {
        "segmentation": (None, classes, *recipe.input_shape[2:]),
        "detection": (None, classes + 4, None, None),
    }
    return TensorSpec("logits", "float32", positioned.get(recipe.task, (None, classes)))


def logits_of(model: nn.Module, batch: NDArray[np.float32], *, chunk: int = 256) -> NDArray[np.float32]:
    """Return the model's output (N, ...) for a batch (N, C, H, W), in evaluation mode, on the model's device.

    Images run in chunks; the model's own state and mode stay as they are.
    """
    import torch

    was_training = model.training
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        parts = [model(part.to(device)).float().cpu() for part in torch.split(torch.from_numpy(batch), chunk)]
    model.train(was_training)
    made: NDArray[np.float32] = torch.cat(parts).numpy()
    return made
