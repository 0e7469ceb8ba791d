"""Fine-tuning: what a training starts from, what of it stays, and that it goes back through the same graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import Recipe
from msn_deploy.nets.blocks import classifier_of
from msn_deploy.pipeline.verify import verify_folder
from msn_deploy.training import TrainResult, load_checkpoint, train
from msn_deploy.training.checkpoint import read_tensors, save_checkpoint
from msn_deploy.training.optimizer import freeze, into_training

pytestmark = pytest.mark.slow

STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "u", "v")


def _train(recipe: Recipe, out: Path, **options: Any) -> TrainResult:
    return train(recipe, out=out, device="cpu", limit_train=64, **options)


@pytest.fixture
def recipe(small_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A tiny cnn3: 8 steps of 16 images an epoch."""

    def make(norm: str = "msn", **train: Any) -> Recipe:
        return small_recipe("cnn3", norm, **{"epochs": 1, "batch_size": 8, **train})

    return make


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Recipe]) -> Callable[[str], Path]:
    """The checkpoint of a cnn3 with a norm that has seen 64 digits."""
    folder, made = tmp_path_factory.mktemp("base"), dict[str, Path]()

    def checkpoint(norm: str) -> Path:
        if norm not in made:
            made[norm] = _train(small_recipe("cnn3", norm, epochs=2, batch_size=16), folder).checkpoint
        return made[norm]

    return checkpoint


def _moved(before: Path, after: Path) -> set[str]:
    """Return the last names of the tensors that differ, those of the classifier as "classifier"."""
    old, new = read_tensors(before)[0], read_tensors(after)[0]
    assert old.keys() == new.keys()
    last = classifier_of(load_checkpoint(before)[0])
    return {
        "classifier" if name.startswith(f"{last}.") else name.rpartition(".")[2]
        for name in old
        if not torch.equal(old[name], new[name])
    }


@pytest.mark.parametrize(
    ("norm", "what"),
    [
        *(("bn", "none"), ("bn", "statistics"), ("bn", "backbone"), ("sn", "statistics")),
        *(("msn-affine", "none"), ("msn-affine", "statistics"), ("msn-affine", "backbone")),
    ],
)
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path, norm: str, what: str
) -> None:
    tuned = _train(recipe(norm, freeze=what), tmp_path, weights=base(norm))
    moved = _moved(base(norm), tuned.checkpoint)
    assert "classifier" in moved
    if what == "backbone":
        assert moved == {"classifier"}
    else:
        learned = {"bn": {"weight", "bias"}, "msn-affine": {"weight", "gain", "shift"}, "sn": {"weight", "bias"}}[norm]
        tracked = {"bn": STATISTICS[:3], "msn-affine": (*STATISTICS[:1], *STATISTICS[2:]), "sn": STATISTICS[3:]}[norm]
        assert moved == {"classifier", *learned, *(tracked if what == "none" else ())}


@pytest.mark.parametrize("norm", ["bn", "msn"])
def test_frozen_statistics_are_what_normalises_in_training(small_net: Callable[..., nn.Module], norm: str) -> None:
    model = small_net("cnn3", norm)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
        into_training(model, "statistics")
        assert torch.equal(model(x), wanted)
        into_training(model, "none")
        assert not torch.allclose(model(x), wanted, atol=1e-3)


def test_an_average_of_a_frozen_backbone_is_the_backbone(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = _train(recipe("msn", freeze="backbone", ema=0.9), tmp_path, weights=base("msn"))
    assert _moved(base("msn"), tuned.checkpoint) == {"classifier"}


@pytest.mark.parametrize(("norm", "what"), [("msn", "none"), ("bn", "statistics"), ("msn", "backbone")])
def test_it_starts_where_the_checkpoint_ended_and_resumes(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path, norm: str, what: str
) -> None:
    chosen = recipe(norm, freeze=what, epochs=2, learning_rate=0.001)
    whole = _train(chosen, tmp_path / "whole", weights=base(norm))
    fresh = _train(chosen.override(freeze="none"), tmp_path / "fresh")
    assert whole.history[0]["train_loss"] < fresh.history[0]["train_loss"]

    def stop(done: float, total: float, note: str = "") -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(chosen, tmp_path / "halves", weights=base(norm), progress=stop)
    resumed = _train(chosen, tmp_path / "halves", weights=base(norm), resume=True)
    assert resumed.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_resuming_from_other_weights_is_refused(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path
) -> None:
    def stop(done: float, total: float, note: str = "") -> None:
        if done == 12:
            raise KeyboardInterrupt

    chosen = recipe("msn", epochs=2)
    with pytest.raises(KeyboardInterrupt):
        _train(chosen, tmp_path / "run", weights=base("msn"), progress=stop)
    other = _train(recipe("msn", seed=3), tmp_path / "other").checkpoint
    for weights in (None, other):
        with pytest.raises(InputError, match="was started from other weights"):
            _train(chosen, tmp_path / "run", weights=weights, resume=True)


def test_images_are_prepared_as_the_checkpoint_says_and_the_weights_are_a_parent(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path
) -> None:
    model, info = load_checkpoint(base("msn"))
    assert info.preprocess is not None
    started = tmp_path / "cnn3_msn.safetensors"
    save_checkpoint(started, model, replace(info, preprocess=replace(info.preprocess, mean=(0.25,), std=(0.75,))))
    tuned = _train(recipe("msn"), tmp_path / "tuned", weights=started)
    assert tuned.info.preprocess is not None
    assert (tuned.info.preprocess.mean, tuned.info.preprocess.std) == ((0.25,), (0.75,))
    parents = {parent.role: parent.file for parent in read_sidecar(tuned.checkpoint).parents}
    assert parents["weights"] == "../cnn3_msn.safetensors"
    for folder in (tmp_path, tmp_path / "tuned"):
        assert {finding.verdict for finding in verify_folder(folder)} == {"ok"}


@pytest.mark.parametrize("classifier", ["linear", "sn"])
def test_other_classes_start_the_classifier_anew_and_it_is_said(
    recipe: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture, classifier: str
) -> None:
    chosen = replace(recipe("msn"), classifier=classifier)
    started = _train(chosen, tmp_path / "base").checkpoint
    folder = _three_classes(tmp_path / "three")
    with caplog.at_level(logging.WARNING):
        tuned = _train(
            replace(chosen, data=str(folder), train=replace(chosen.train, freeze="backbone", batch_size=2)),
            tmp_path / "tuned",
            weights=started,
        )
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"{started} has another number of classes than 3: the classifier starts anew"]
    old, new = read_tensors(started)[0], read_tensors(tuned.checkpoint)[0]
    assert tuple(new["7.weight"].shape) == (3, old["7.weight"].shape[1])
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("7."))


def _three_classes(folder: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for name, shade in (("a", 10), ("b", 100), ("c", 200)):
            (folder / split / name).mkdir(parents=True)
            for at in range(2):
                Image.new("L", (28, 28), shade + at).save(folder / split / name / f"{at}.png")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm": "bn"}, r"missing 1\.bias, 1\.running_mean, .*unexpected 0\.num_batches_tracked"),
        ({"width": 3}, r"size mismatch for .*, the network's is .*in all"),
        ({"input_shape": (1, 1, 32, 32)}, r"size mismatch for 7\.weight"),
    ],
)
def test_what_else_does_not_fit_is_named(
    recipe: Callable[..., Recipe], base: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        _train(replace(recipe("msn"), **change), tmp_path, weights=base("msn"))
    assert not list(tmp_path.iterdir())


def test_it_does_not_replace_what_it_starts_from(recipe: Callable[..., Recipe], base: Callable[[str], Path]) -> None:
    before = base("msn").read_bytes()
    with pytest.raises(InputError, match=r"is what the training would write.\nChoose another `--out`"):
        _train(recipe("msn"), base("msn").parent, weights=base("msn"))
    assert base("msn").read_bytes() == before


def test_a_network_without_a_linear_layer_has_no_classifier() -> None:
    with pytest.raises(InputError, match="no linear layer"):
        freeze(nn.Sequential(nn.Conv2d(1, 2, 3)), "backbone")
