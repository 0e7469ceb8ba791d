"""The public verbs in a row, as a notebook calls them: names as text, and files beside their source."""

from __future__ import annotations

from pathlib import Path

import pytest

import msn_deploy
from msn_deploy.core.errors import InputError
from msn_deploy.core.recipes import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    result = msn_deploy.train("cnn3_none", str(out), epochs=1, samples=64, settings=["width=2"])
    assert (result.checkpoint, len(result.history)) == (out / "cnn3_none.safetensors", 1)
    assert (out / "cnn3_none.curves.png").is_file()
    return out


def test_from_a_recipe_to_an_answer(run: Path) -> None:
    exported = msn_deploy.export(str(run / "cnn3_none.safetensors"))
    assert exported.path == run / "cnn3_none.onnx"
    int8 = msn_deploy.calibrate(str(exported.path), samples=16)
    assert int8.path == run / "cnn3_none.int8.onnx"
    assert msn_deploy.evaluate(str(int8.path), samples=20).samples == 20
    assert {finding.verdict for finding in msn_deploy.verify_folder(str(run))} == {"ok"}


def test_a_run_is_lost_only_if_asked(run: Path) -> None:
    again = {"epochs": 1, "samples": 64, "settings": ["width=2"]}
    with pytest.raises(InputError, match="already exists"):
        msn_deploy.train("cnn3_none", run, **again)
    recipe = load_recipe("cnn3_none").override(epochs=1)
    other = msn_deploy.train(recipe, run, name="other", samples=64, settings=["width=2"])
    assert other.checkpoint.name == "other.safetensors"
    before = other.checkpoint.read_bytes()
    msn_deploy.train("cnn3_none", run, name="other", seed=5, overwrite=True, **again)
    assert other.checkpoint.read_bytes() != before


def test_a_network_in_memory_needs_a_name() -> None:
    import torch

    with pytest.raises(InputError, match="Give `out`"):
        msn_deploy.export(torch.nn.Conv2d(1, 1, 1).eval(), input_shape=(1, 1, 4, 4))
