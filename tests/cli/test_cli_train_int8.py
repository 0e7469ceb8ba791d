"""`train CHECKPOINT --quantize int8`, and what becomes of its checkpoint, up to an engine without calibration data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.core.recipes import Recipe
from msn_deploy.model.opened import open_model
from msn_deploy.quant.placement import WEIGHTED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Recipe]) -> Path:
    from msn_deploy.training import train

    recipe = small_recipe("cnn3", "bn", width=4, epochs=1)
    return train(recipe, out=tmp_path_factory.mktemp("base"), device="cpu", limit_train=256).checkpoint


def test_from_a_checkpoint_to_an_engine_whose_layers_are_all_int8(ok: Any, base: Path, tmp_path: Path) -> None:
    options = ("--quantize", "int8", "--distill", "--epochs", 1, "--samples", 256, "--out", tmp_path)
    told = ok("train", base, *options, "--json", tmp_path / "said.json")
    said = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    checkpoint = Path(said["checkpoint"])
    assert checkpoint == tmp_path / "cnn3_bn_int8.safetensors"
    assert [entry["epoch"] for entry in said["history"]] == [0, 1]
    assert "export" in told.err
    out = tmp_path / "net.onnx"
    ok("export", checkpoint, "--out", out)
    assert json.loads(ok("info", checkpoint, "--json", "-").out)["precision"] == "int8"
    ok("eval", checkpoint)
    ok("eval", out)
    model = open_model(out, step="test")
    layers = [node.op_type for node in model.proto.graph.node if node.op_type in WEIGHTED]
    assert (model.precision, len(layers)) == ("int8", 4)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    built = ok("build-engine", out, "--precision", "int8", "--backend", "tensorrt-rtx", "--target", "rtx-sm86",
               "--out", tmp_path / "net.engine", "--json", "-")  # fmt: skip
    engine = json.loads(built.out)["engine"]
    assert (engine["int8_convs"], engine["not_int8"]) == (3, [])


def test_what_has_no_part_in_it_is_refused(cli: Any, base: Path, tmp_path: Path) -> None:
    for words, said in (
        (("train", base, "--quantize", "int4"), "int8"),
        (("train", "cnn3_bn", "--quantize", "int8"), "is not one"),
        (("train", base, "--quantize", "int8", "--norm", "msn"), "`--norm`"),
        (("train", base, "--quantize", "int8", "--set", "width=8"), "width"),
        (("train", "cnn3_bn", "--distill"), "`--distill`"),
        (("train", tmp_path / "gone.safetensors", "--quantize", "int8"), "does not exist"),
    ):
        outcome = cli(*words, "--out", tmp_path / "out")
        assert (outcome.code, said in outcome.err) == (2, True), outcome.err
