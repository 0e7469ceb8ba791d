"""Checkpoints come back as they were, and nothing that is none of ours is opened, let alone executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from msn_deploy.core.artifacts import Parent, read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import NORMS, ModelInfo, Preprocess
from msn_deploy.core.recipes import Recipe
from msn_deploy.training import load_checkpoint, load_weights
from msn_deploy.training.checkpoint import read_tensors, save_checkpoint


def _info(recipe: Recipe) -> ModelInfo:
    _, channels, height, width = recipe.input_shape
    return ModelInfo(
        net=recipe.net,
        norm=recipe.norm,
        task="classification",
        classes=tuple("0123456789"),
        preprocess=Preprocess(height_px=height, width_px=width, channels=channels, mean=(0.3,), std=(0.4,)),
        data="digits",
        recipe=recipe.to_dict(),
        metrics={"test_accuracy": 0.75},
    )


@pytest.fixture
def saved(tmp_path: Path, small_recipe: Callable[..., Recipe], small_net: Callable[..., nn.Module]) -> Path:
    """A checkpoint of cnn3 with MSN."""
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, small_net("cnn3", "msn"), _info(small_recipe("cnn3", "msn")))
    return path


@pytest.mark.parametrize("norm", NORMS)
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, small_recipe: Callable[..., Recipe], small_net: Callable[..., nn.Module], norm: str
) -> None:
    path = tmp_path / "net.safetensors"
    model, info = small_net("cnn3", norm), _info(small_recipe("cnn3", norm))
    parent = Parent(role="data:train", file="digits", sha256="1" * 64)
    save_checkpoint(path, model, info, parents=[parent])
    loaded, read = load_checkpoint(path)
    assert read == info
    assert not any(module.training for module in loaded.modules())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    side = read_sidecar(path)
    assert (side.kind, side.parents, side.facts) == ("checkpoint", (parent,), {"test_accuracy": 0.75})
    assert {"torch", "safetensors"} <= side.versions.keys()


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for kept in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=rf"net\.safetensors is not a whole safetensors file \({kept} bytes") as e:
            load_checkpoint(saved)
        assert len(str(e.value).splitlines()) <= 3


class _Bomb:
    """A pickle that creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_bomb_of_these_tests_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "owned")))
    assert (tmp_path / "owned").is_dir()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_called_safetensors_is_not_opened(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps({"weight": _Bomb(tmp_path / "owned")}, protocol=protocol))
    for load in (load_checkpoint, lambda path: load_weights(nn.Linear(3, 2), path)):
        with pytest.raises(InputError, match=r"net\.safetensors is (a pickle|not a whole safetensors)"):
            load(path)
    assert not (tmp_path / "owned").exists()


def test_a_torch_file_called_safetensors_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(InputError, match="is a pickle under the name of a safetensors file; it was not opened"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_is_not_executed(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save({"weight": _Bomb(tmp_path / "owned")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="is not a file of plain weights"):
        load_weights(nn.Linear(3, 2), path)
    assert not (tmp_path / "owned").exists()


def test_safetensors_without_our_metadata_are_no_checkpoint(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"holds tensors but no recipe[\s\S]*FILE\.py:FACTORY"):
        load_checkpoint(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ("not json", "damaged metadata"),
        ("{}", "damaged metadata"),
        (ModelInfo(net="cnn3", norm="msn").to_json(), r"missing key 'name'"),
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, metadata: str, why: str) -> None:
    path = tmp_path / "net.safetensors"
    save_file(nn.Linear(3, 2).state_dict(), path, {"msn_deploy": metadata})
    with pytest.raises(InputError, match=rf"net\.safetensors[\s\S]*{why}"):
        load_checkpoint(path)


@pytest.mark.parametrize("harm", ["shape", "missing", "surplus"])
def test_tensors_that_do_not_fit_the_recipe(saved: Path, harm: str) -> None:
    tensors, metadata = read_tensors(saved)
    if harm == "shape":
        tensors["0.weight"] = tensors["0.weight"][:1].clone()
    elif harm == "missing":
        del tensors["0.weight"]
    else:
        tensors["9.weight"] = torch.ones(1)
    save_file(tensors, saved, metadata)
    with pytest.raises(InputError, match=r"net\.safetensors does not fit the network: .*(0|9)\.weight") as caught:
        load_checkpoint(saved)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy"])
def test_weights_of_the_users_own(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "pt")
    load_weights(target, path)
    assert torch.equal(source.weight, target.weight)
    assert torch.equal(source.bias, target.bias)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"weight": 3}},
        [torch.ones(2, 3)],
        torch.ones(2, 3),
        {1: torch.ones(2, 3)},
        {"weight": 3},
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load_weights(nn.Linear(3, 2), tmp_path / "weights.pt")


def test_a_state_dict_of_another_network(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="does not fit the network: size mismatch for weight"):
        load_weights(nn.Linear(3, 2), tmp_path / "weights.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_torch_files_are_refused_or_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(3, 2).state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for kept in {*range(0, len(whole) // 2, 23), 0, 1, 2}:
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"weights\.pt"):
            load_weights(nn.Linear(3, 2), path)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(np.random.default_rng(seed).bytes(seed * 3))
    with pytest.raises(InputError, match=r"weights\.pt is not a file of plain weights"):
        load_weights(nn.Linear(3, 2), path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.safetensors", tmp_path / "gone.pt"):
        with pytest.raises(InputError, match=f"{path} does not exist"):
            load_weights(nn.Linear(3, 2), path)


def test_an_unwritable_folder_is_an_input_error(
    below_a_file: Path, small_recipe: Callable[..., Recipe], small_net: Callable[..., nn.Module]
) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(below_a_file, small_net(), _info(small_recipe()))
