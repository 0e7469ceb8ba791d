"""Checkpoints: safetensors files whose header says how to rebuild the network and prepare its input.

Until a training is done, the state to resume it from is next to its checkpoint, written after every epoch.
Nothing here unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from msn_deploy.core.artifacts import Parent, publish, remove
from msn_deploy.core.errors import InputError, shorten
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, info_from_json
from msn_deploy.core.opening import read_input
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.nets import build_net

TRAIN_VERSIONS = ("torch", "numpy", "pillow", "safetensors")  # what the bytes of a trained network depend on

_RUN_KEY = "msn_deploy_run"  # in the header of the file

Parts = Mapping[str, "nn.Module | torch.optim.Optimizer"]
"""What is saved and restored, by name; a name has no dot."""


def save_checkpoint(
    path: Path,
    model: nn.Module,
    info: ModelInfo,
    *,
    parents: Sequence[Parent] = (),
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights and the info, atomically, with a sidecar. config: what beside the recipe they depend on."""
    write_tensors(
        path,
        model.state_dict(),
        {METADATA_KEY: info.to_json()},
        parents=parents,
        config={"recipe": info.recipe, **(config or {})},
        facts=info.metrics,
    )


def load_checkpoint(path: Path) -> tuple[nn.Module, ModelInfo]:
    """Rebuild the network of a checkpoint, in evaluation mode, on the CPU. Raises InputError that names the file."""
    tensors, metadata = read_tensors(path)
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path} holds tensors but no recipe: it is not a checkpoint of `msn-deploy train`.\n"
            "Weights of your own network: msn-deploy export FILE.py:FACTORY --weights WEIGHTS --input-shape N,C,H,W"
        )
    info = info_from_json(metadata[METADATA_KEY], source=str(path))
    model = build_net(recipe_from_dict(info.recipe, source=str(path)), classes=len(info.classes))
    fill(model, tensors, str(path))
    return model.eval(), info


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, left_out: Iterable[str] = ()) -> None:
    """Load a whole state dict. Raises InputError that names and counts what is missing, too much or of another shape.

    left_out: names that the file has beside, which are too much as well.
    """
    own, why, misshapen = model.state_dict(), "", []
    missing, unexpected = [*(own.keys() - tensors.keys())], [*(tensors.keys() - own.keys())]
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)  # modules may rename what they find
    except RuntimeError as cause:  # shapes, and what a module of the user's own finds wrong
        misshapen = [
            f"{name}: {_shape(value)}, the network's is {_shape(own[name])}"
            for name, value in tensors.items()
            if isinstance(own.get(name), Tensor) and value.shape != own[name].shape
        ]
        why = "" if misshapen else shorten(cause)
    found = {"size mismatch for": misshapen, "missing": sorted(missing), "unexpected": sorted({*unexpected, *left_out})}
    said = [f"{what} {listed(names)}" for what, names in found.items() if names]
    if said or why:
        raise InputError(f"{source} does not fit the network: {'; '.join(filter(None, (*said, why)))}.")


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many they are."""
    return f"{', '.join(names[:3])}{f', ... ({len(names)} in all)' if len(names) > 3 else ''}"


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single number"


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    parents: Sequence[Parent] = (),
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, float] | None = None,
) -> None:
    """Publish a safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    publish(
        path,
        lambda partial: partial.write_bytes(save_tensors(plain, dict(metadata))),
        kind="checkpoint",
        parents=parents,
        versions=TRAIN_VERSIONS,
        config=config,
        facts=facts,
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: the tensors and the metadata of its header. Raises InputError; never unpickles."""
    raw = read_input(path, "weights")
    try:
        tensors = load_tensors(raw)
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
    except (SafetensorError, ValueError) as cause:
        # Asked only now, and of the ninth byte too: a header of 640 bytes begins like a pickle of protocol 2.
        if raw[:2] == b"PK" or (raw[:1] == b"\x80" and raw[1:2] in b"\2\3\4\5" and raw[8:9] != b"{"):
            raise InputError(
                f"{path} is a pickle under the name of a safetensors file; it was not opened.\n"
                "Save the weights with: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
            ) from cause
        raise InputError(
            f"{path} is not a whole safetensors file ({len(raw)} bytes; {cause}).\n"
            "Likely cause: a truncated copy. Copy it again, or train again."
        ) from cause
    return tensors, header.get("__metadata__") or {}


def save_state(
    path: Path, recipe: Recipe, parents: Sequence[Parent], history: list[dict[str, Any]], parts: Parts
) -> None:
    """Write every part's state, the recipe, the digests of the training images (the first parent) and of the weights
    that the training started from, and the history.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
            continue
        for index, slots in part.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{slot}": value for slot, value in slots.items() if value is not None}
    run = {"recipe": recipe.to_dict(), "data": parents[0].sha256, "weights": _start_of(parents), "history": history}
    write_tensors(path, tensors, {_RUN_KEY: json.dumps(run)}, parents=parents, config={"recipe": run["recipe"]})


def restore_state(path: Path, recipe: Recipe, parents: Sequence[Parent], parts: Parts) -> list[dict[str, Any]]:
    """Fill every part from the file and return the history.

    Raises InputError if it is of another recipe, of other training images or of other weights to start from.
    """
    if not path.is_file():
        raise InputError(f"nothing to resume: {path} does not exist.\nStart without `--resume`.")
    tensors, metadata = read_tensors(path)
    if _RUN_KEY not in metadata:
        raise InputError(f"{path} is not the state of a training.\nStart without `--resume`.")
    run = json.loads(metadata[_RUN_KEY])
    if recipe_from_dict(run["recipe"], source=str(path)) != recipe:
        raise InputError(f"{path} was made with other options.\nResume with the options of the first run.")
    if run.get("weights", "") != _start_of(parents):
        raise InputError(f"{path} was started from other weights.\nResume with the `--weights` of the first run.")
    if run["data"] != parents[0].sha256:
        raise InputError(
            f"{path} was made with other training images than {recipe.data} holds now.\n"
            "Resume with the data and `--samples` of the first run."
        )
    for name, part in parts.items():
        own = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
            continue
        state: dict[int, dict[str, Any]] = {}
        parameters = [each for group in part.param_groups for each in group["params"]]
        for key, value in own.items():
            index, slot = key.split(".", 1)
            like = parameters[int(index)]
            # A fused optimizer runs through both as they lie in memory, channels_last or not.
            laid = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            state.setdefault(int(index), {})[slot] = laid
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
    history: list[dict[str, Any]] = run["history"]
    return history


def _start_of(parents: Sequence[Parent]) -> str:
    """Return the digest of the weights that a training starts from; nothing for weights drawn at random."""
    return next((parent.sha256 for parent in parents if parent.role == "weights"), "")


def remove_state(path: Path) -> None:
    """Remove the file and its sidecar: a finished training has nothing to resume."""
    remove(path)
