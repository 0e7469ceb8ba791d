"""Every built-in recipe loads and trains a few steps, on a few images of its own size."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from task_data import write_rectangles

from msn_deploy.core.home import builtin_folder
from msn_deploy.core.recipes import load_recipe
from msn_deploy.nets import build_net
from msn_deploy.training import load_checkpoint, train, train_gan

pytestmark = pytest.mark.slow

BUILT_IN = sorted(path.stem for path in builtin_folder("models").glob("*.toml"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of noise and four for the test, of two classes, as MNIST-style files."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 8), ("t10k", 4)):
        pixels, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), bytes([0, 1] * (count // 2))
        head = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels)
    return folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("objects"), count=10, side=96)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_recipe_trains(name: str, images: Path, objects: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    data = images if recipe.task == "classification" else objects
    small = replace(recipe, data=str(data)).override(epochs=1, batch_size=4)
    run = train if recipe.gan is None else train_gan
    result = run(small, out=tmp_path, device="cpu")
    trained, info = load_checkpoint(result.checkpoint)
    assert (info.net, info.norm) == (recipe.net, recipe.norm)
    torch.manual_seed(small.train.seed)
    untrained = build_net(small, classes=len(info.classes))
    with torch.no_grad():
        far = [float((a - b).abs().max()) for a, b in zip(trained.parameters(), untrained.parameters(), strict=True)]
    assert np.mean(np.array(far) > 0) > 0.9  # a ReLU that is dead for these few images keeps its layer where it was
    assert all(torch.isfinite(value).all() for value in trained.parameters())
