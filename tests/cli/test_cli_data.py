"""A model carries how its images were fitted and where they came from; every command that reads images heeds it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.model_info import ModelInfo, Preprocess
from msn_deploy.data import load_split, to_input
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.images import split_for
from msn_deploy.pipeline.infer import infer
from msn_deploy.training.checkpoint import save_checkpoint
from msn_deploy.training.runner import logits_of

PADDED = Preprocess(height_px=28, width_px=28, channels=1, mean=(0.3,), std=(0.4,), fit="pad")


@pytest.fixture
def save(tmp_path: Path, small_recipe: Callable, small_net: Callable) -> Callable[..., Path]:
    """Save a seeded cnn3 that was trained on padded images: `save(data="mnist")`."""

    def _save(**changes: object) -> Path:
        info = ModelInfo(
            net="cnn3",
            norm="msn",
            task="classification",
            classes=tuple("0123456789"),
            preprocess=PADDED,
            data="digits",
            recipe=small_recipe("cnn3", "msn").to_dict(),
        )
        path = tmp_path / "net.safetensors"
        save_checkpoint(path, small_net("cnn3", "msn"), replace(info, **changes))
        return path

    return _save


def test_eval_and_infer_pad_for_a_model_that_was_trained_on_padded_images(
    save: Callable[..., Path], ok: Callable, small_net: Callable, tmp_path: Path
) -> None:
    checkpoint, onnx = save(), tmp_path / "net.onnx"
    ok("export", checkpoint, "--out", onnx)
    digits = load_split("digits", "test", height_px=8, width_px=8, channels=1).images
    padded = np.pad(digits, ((0, 0), (10, 10), (10, 10), (0, 0)))
    logits = logits_of(small_net("cnn3", "msn"), to_input(padded, PADDED))
    for model in (checkpoint, onnx):
        assert evaluate(model).predictions == tuple(logits.argmax(1))
    Image.fromarray(digits[7, ..., 0]).save(tmp_path / "digit.png")
    scores = np.exp(logits[7] - logits[7].max())
    for model in (checkpoint, onnx):
        (answer,) = infer(model, [tmp_path / "digit.png"])
        assert answer.answer.guesses[0].score == pytest.approx(scores.max() / scores.sum(), rel=1e-4)


def test_every_split_for_a_model_is_fitted_as_its_preprocessing_says() -> None:  # calibrate, bench, export
    for split in ("train", "test"):
        images = split_for(None, PADDED, "digits", split).images
        assert not images[:, :10].any()
        assert images[:, 10:18, 10:18].any(axis=(1, 2, 3)).all()
        resized = split_for(None, replace(PADDED, fit="resize"), "digits", split).images
        assert resized[:, :10].any()


def test_a_model_whose_data_are_not_here_says_where_to_put_them(
    save: Callable[..., Path], ok: Callable, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSN_DEPLOY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    checkpoint, onnx = save(data="svhn"), tmp_path / "net.onnx"
    assert "compared on random input" in ok("export", checkpoint, "--out", onnx).err
    for command in (("eval", checkpoint), ("eval", onnx), ("calibrate", onnx), ("bench", onnx)):
        done = cli(*command)
        assert done.code == 2
        assert "'svhn', which would have to be downloaded" in done.err
        done = cli(*command, "--data", "svhn")
        assert done.code == 2
        assert "svhn is not on this machine" in done.err
        assert f"{tmp_path}/data/svhn" in done.err
        assert "Put these files into one of the folders: train_32x32.mat and test_32x32.mat" in done.err
        assert "pip install '.[data]'" in done.err
