"""Checkpoints: safetensors files whose header says how to rebuild the network and prepare its input.

One that was trained under INT8 holds its graph beside its weights, for it is not the network of its recipe any more.

Until a training is done, the state to resume it from is next to its checkpoint, written after every epoch.
Nothing here unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from msn_deploy.core.reader import parse_json, record
from msn_deploy.core.recipes import Recipe, recipe_from_dict
from msn_deploy.nets import build_net, sketch_net

TRAIN_VERSIONS = ("torch", "numpy", "pillow", "safetensors")  # what the bytes of a trained network depend on

_RUN_KEY = "msn_deploy_run"  # in the header of the file
_MOST_HEADER = 100_000_000  # safetensors' own limit, bytes
# What an optimizer keeps of each parameter that it moves, by its class.
_SLOTS = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}

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
    recipe, classes = recipe_from_dict(info.recipe, source=str(path)), len(info.classes)
    if info.precision == "int8":
        from msn_deploy.training.graph_net import net_of_state  # late: it imports onnx, which others do not need

        quantised = net_of_state(tensors, str(path))
        _require_fit(quantised.state_dict(), tensors, str(path))
        fill(quantised, tensors, str(path))
        return quantised.eval(), info
    # What the recipe asks for is compared with what is there before a network of that size is built.
    try:
        sketch = sketch_net(recipe, classes=classes)
    except InputError as cause:
        raise InputError(f"{path}: {cause}") from cause
    _require_fit(sketch.state_dict(), tensors, str(path))
    model = build_net(recipe, classes=classes)
    fill(model, tensors, str(path))
    return model.eval(), info


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, left_out: Iterable[str] = ()) -> None:
    """Load a whole state dict. Raises InputError that names and counts what is missing, too much or of another shape.

    left_out: names that the file has beside, which are too much as well.
    """
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)  # modules may rename what they find
    except RuntimeError as cause:  # shapes, and what a module of the user's own finds wrong
        _require_fit(model.state_dict(), tensors, source, left_out=left_out)
        raise InputError(f"{source} does not fit the network: {shorten(cause)}.") from cause
    _refuse(source, missing=missing, unexpected=[*unexpected, *left_out])


def _require_fit(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, *, left_out: Iterable[str] = ()
) -> None:
    """Raise InputError where names or shapes are not those of a network's own state dict."""
    misshapen = [
        f"{name}: {_shape(value)}, the network's is {_shape(own[name])}"
        for name, value in tensors.items()
        if isinstance(own.get(name), Tensor) and value.shape != own[name].shape
    ]
    unexpected = tensors.keys() - own.keys() | {*left_out}
    _refuse(source, misshapen=misshapen, missing=own.keys() - tensors.keys(), unexpected=unexpected)


def _refuse(
    source: str, *, misshapen: Sequence[str] = (), missing: Iterable[str] = (), unexpected: Iterable[str] = ()
) -> None:
    found = {"size mismatch for": misshapen, "missing": sorted(missing), "unexpected": sorted({*unexpected})}
    said = [f"{what} {listed(names)}" for what, names in found.items() if names]
    if said:
        raise InputError(f"{source} does not fit the network: {'; '.join(said)}.")


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
    except KeyError as cause:
        raise InputError(f"{path} holds tensors of type {cause}, which torch does not load.") from cause
    except (SafetensorError, ValueError) as cause:
        # Asked only now, and of the ninth byte too: a header of 640 bytes begins like a pickle of protocol 2.
        if raw[:2] == b"PK" or (raw[:1] == b"\x80" and raw[1:2] in b"\2\3\4\5" and raw[8:9] != b"{"):
            raise InputError(
                f"{path} is a pickle under the name of a safetensors file; it was not opened.\n"
                "Save the weights with: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
            ) from cause
        raise InputError(
            f"{path} is not a whole safetensors file ({len(raw)} bytes; {cause}).\nCopy it again, or train again."
        ) from cause
    size = int.from_bytes(raw[:8], "little")
    header = parse_json(raw[8 : 8 + size], source=f"the header of {path}", most_bytes=_MOST_HEADER)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What stands beside the tensors of a state."""

    recipe: dict[str, Any]
    data: str
    history: tuple[dict[str, int | float | str | tuple[float, ...]], ...]
    weights: str = ""


def restore_state(
    path: Path, recipe: Recipe, parents: Sequence[Parent], parts: Parts, *, measured: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Fill every part from the file and return the history.

    measured: how keys start of which each epoch has a number. Raises InputError if it is of another recipe, of other
    training images or of other weights to start from, or not such a state.
    """
    if not path.is_file():
        raise InputError(f"nothing to resume: {path} does not exist.\nStart without `--resume`.")
    tensors, metadata = read_tensors(path)
    if _RUN_KEY not in metadata:
        raise InputError(f"{path} is not the state of a training.\nStart without `--resume`.")
    run = record(_Run, parse_json(metadata[_RUN_KEY], source=str(path)), source=str(path))
    if recipe_from_dict(run.recipe, source=str(path)) != recipe:
        raise InputError(f"{path} was made with other options.\nResume with the options of the first run.")
    if run.weights != _start_of(parents):
        raise InputError(f"{path} was started from other weights.\nResume with the `--weights` of the first run.")
    if run.data != parents[0].sha256:
        raise InputError(
            f"{path} was made with other training images than {recipe.data} holds now.\n"
            "Resume with the data and `--samples` of the first run."
        )
    for at, entry in enumerate(run.history, start=1):
        numbers = [key for key, value in entry.items() if isinstance(value, int | float)]
        known = all(any(key.startswith(start) for key in numbers) for start in measured)
        if entry.get("epoch") != at or entry.keys() != run.history[0].keys() or not known or at >= recipe.train.epochs:
            raise InputError(f"{path} has a history whose entry {at} is not of that epoch.\nStart without `--resume`.")
    for name, part in parts.items():
        own = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if isinstance(part, nn.Module):
            fill(part, own, f"{path}, {name},")
        else:
            _restore_optimizer(part, own, f"{path}, {name},")
    return [{key: list(value) if isinstance(value, tuple) else value for key, value in e.items()} for e in run.history]


def _restore_optimizer(optimizer: torch.optim.Optimizer, own: Mapping[str, Tensor], source: str) -> None:
    """Fill an optimizer from tensors by INDEX.SLOT. Raises InputError for others than it has of its parameters."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    slots = sorted(_SLOTS[type(optimizer)])
    like = {f"{at}.{slot}": each for at, each in enumerate(parameters) for slot in slots}
    shapes = {
        key: torch.empty(() if key.endswith(".step") else each.shape, device="meta") for key, each in like.items()
    }
    _require_fit(shapes, own, source)
    state: dict[int, dict[str, Any]] = {}
    for key, value in own.items():
        index, slot = key.split(".", 1)
        # A fused optimizer runs through both as they lie in memory, channels_last or not.
        laid = value.float() if slot == "step" else torch.empty_like(like[key]).copy_(value)
        state.setdefault(int(index), {})[slot] = laid
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _start_of(parents: Sequence[Parent]) -> str:
    """Return the digest of the weights that a training starts from; nothing for weights drawn at random."""
    return next((parent.sha256 for parent in parents if parent.role == "weights"), "")


def remove_state(path: Path) -> None:
    """Remove the file and its sidecar: a finished training has nothing to resume."""
    remove(path)
