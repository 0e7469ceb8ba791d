"""Checkpoints come back as they were, and nothing that is none of ours is opened, let alone executed."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
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
from msn_deploy.nets import build_net, sketch_net
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


def _as_if(recipe: Recipe, **changes: object) -> ModelInfo:
    """The info of a checkpoint whose recipe asks for another network than its tensors are of."""
    info = _info(recipe)
    return replace(info, recipe={**info.recipe, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 512}, "does not fit the network: size mismatch for"),
        ({"width": 2048}, r"net\.safetensors: .*354480138 parameters; at most 134217728"),
        ({"input_shape": [1, 1, 2048, 2048]}, "does not fit the network: size mismatch for|at most 134217728"),
        ({"input_shape": [1, 1, 40_000, 40_000]}, "40000x40000 pixels are too large"),
        ({"width": 2**40}, "width must be at most 4096"),
    ],
)
def test_a_small_file_cannot_ask_for_a_large_network(
    tmp_path: Path,
    small_recipe: Callable[..., Recipe],
    small_net: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    said: str,
) -> None:
    """Nothing is allocated for what the recipe says before it is compared with the tensors."""
    from msn_deploy.nets import registry

    path = tmp_path / "net.safetensors"
    save_checkpoint(path, small_net("cnn3", "msn"), _as_if(small_recipe("cnn3", "msn"), **changes))
    built = []
    whole = registry._built
    monkeypatch.setattr(registry, "_built", lambda *a: built.append(torch.get_default_device().type) or whole(*a))
    with pytest.raises(InputError, match=said):
        load_checkpoint(path)
    assert set(built) <= {"meta"}


@pytest.mark.parametrize("norm", NORMS)
def test_a_sketch_has_the_shapes_of_the_network_and_draws_no_random_number(
    small_recipe: Callable[..., Recipe], norm: str
) -> None:
    recipe = small_recipe("densenet_bc_22", norm)
    torch.manual_seed(3)
    sketch = sketch_net(recipe, classes=10)
    following = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(following, torch.rand(1))
    shapes = {name: value.shape for name, value in build_net(recipe, classes=10).state_dict().items()}
    assert {name: value.shape for name, value in sketch.state_dict().items()} == shapes
    assert {value.device.type for value in sketch.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("kind", ["F4", "F6_E2M3", "F8_E8M0"])
def test_types_that_torch_has_none_of(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.safetensors"
    header = json.dumps({"a": {"dtype": kind, "shape": [8], "data_offsets": [0, 8 if "8" in kind else 6]}})
    header = header.replace("6]", "4]") if kind == "F4" else header
    path.write_bytes(
        len(header).to_bytes(8, "little") + header.encode() + bytes(8 if "8" in kind else 4 + 2 * ("6" in kind))
    )
    with pytest.raises(InputError, match=r"net\.safetensors (holds tensors of type|is not a whole safetensors)"):
        read_tensors(path)


def test_a_file_larger_than_any_network_is_not_read(saved: Path) -> None:
    with saved.open("r+b") as stream:
        stream.truncate(12 << 30)  # of which the disk holds a few KiB
    with pytest.raises(InputError, match=r"net\.safetensors has 12 GiB; files of weights of up to 2 GiB are read"):
        load_checkpoint(saved)


def test_a_refused_pickle_is_told_without_torchs_advice_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": _Bomb(tmp_path / "owned")}, path)
    whole = path.read_bytes()
    for content in (whole, whole[:-40], b"\x80\x02" + whole[:200], pickle.dumps({"a": _Bomb(tmp_path / "x")})):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_weights(nn.Linear(3, 2), path)
        said = str(caught.value)
        assert "\x1b" not in said
        assert "\\x1b" not in said
        assert not re.search("two options|add_safe_globals|weights_only|trust", said)
