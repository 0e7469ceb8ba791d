"""Checkpoints: safetensors files whose header says how to rebuild the network and prepare its input.

Until a training is done, the state to resume it from is next to its checkpoint, written after every epoch.
Nothing here unpickles: a `.pt` file of the user's own weights is read with `weights_only=True`.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from msn_deploy.core.artifacts import Parent, open_input, publish, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import METADATA_KEY, ModelInfo, info_from_json
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.nets import build_net

TRAIN_VERSIONS = ("torch", "numpy", "pillow", "safetensors")  # what the bytes of a trained network depend on

# What torch's restricted unpickler raises on bytes that are no state dict, or only the beginning of one. AttributeError
# and AssertionError are met where single bytes of a file in torch's older format are wrong.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)

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
    _fill(model, tensors, path)
    return model.eval(), info


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a network with weights from a `.safetensors` file or a state dict saved by torch."""
    tensors: object
    if path.suffix == ".safetensors":
        tensors, _ = read_tensors(path)
    else:
        tensors = read_pickle(
            path, hint="Save them with: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        )
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise InputError(f"{path} holds no state dict (names to tensors).")
    _fill(model, tensors, path)


def read_pickle(path: Path, *, hint: str) -> object:
    """Read what torch.save wrote, on the CPU, tensors and plain values only: nothing else is built, no code is run.

    hint: the last lines of the InputError that is raised for every file which can't be read like that.
    """
    with open_input(path) as stream:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle protocol of what is no pickle at all
                content: object = torch.load(stream, map_location="cpu", weights_only=True)
        except _UNREADABLE as cause:
            first = (str(cause).splitlines() or [type(cause).__name__])[0][:120]
            raise InputError(f"{path} is not a file of plain weights ({first}).\n{hint}") from cause
    return content


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as cause:
        lines = [line.strip() for line in str(cause).splitlines()[1:] if line.strip()]
        detail = (lines[0] if lines else str(cause))[:300]
        raise InputError(f"{path} does not fit the network: {detail}") from cause


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
    with open_input(path) as stream:
        raw = stream.read()
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
    path: Path, recipe: Recipe, parents: Sequence[Parent], history: list[dict[str, float]], parts: Parts
) -> None:
    """Write every part's state, the recipe, the digest of the training images (the first parent) and the history."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
            continue
        for index, slots in part.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{slot}": value for slot, value in slots.items() if value is not None}
    run = {"recipe": recipe.to_dict(), "data": parents[0].sha256, "history": history}
    write_tensors(path, tensors, {_RUN_KEY: json.dumps(run)}, parents=parents, config={"recipe": run["recipe"]})


def restore_state(path: Path, recipe: Recipe, data: str, parts: Parts) -> list[dict[str, float]]:
    """Fill every part from the file and return the history. Raises InputError if it is of another recipe or data."""
    if not path.is_file():
        raise InputError(f"nothing to resume: {path} does not exist.\nStart without `--resume`.")
    tensors, metadata = read_tensors(path)
    if _RUN_KEY not in metadata:
        raise InputError(f"{path} is not the state of a training.\nStart without `--resume`.")
    run = json.loads(metadata[_RUN_KEY])
    if recipe_from_dict(run["recipe"], source=str(path)) != recipe:
        raise InputError(f"{path} was made with other options.\nResume with the options of the first run.")
    if run["data"] != data:
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
        for key, value in own.items():
            index, slot = key.split(".", 1)
            state.setdefault(int(index), {})[slot] = value
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
    history: list[dict[str, float]] = run["history"]
    return history


def remove_state(path: Path) -> None:
    """Remove the file and its sidecar: a finished training has nothing to resume."""
    for each in (sidecar_path(path), path):
        each.unlink(missing_ok=True)
