"""What a training needs in order to go on after it was killed: written after every epoch, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msn_deploy.core.artifacts import Parent, sidecar_path
from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.training.checkpoint import read_tensors, write_tensors

_RUN_KEY = "msn_deploy_run"  # in the header of the file

Parts = Mapping[str, "nn.Module | torch.optim.Optimizer"]
"""What is saved and restored, by name; a name has no dot."""


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
