"""A network that was fine-tuned goes back to the device through the same graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.model.opened import open_model

pytestmark = pytest.mark.slow


def test_the_fine_tuned_network_has_the_same_graph_and_bench_says_so(ok: Any, tmp_path: Path) -> None:
    options = ("--epochs", 1, "--samples", 64, "--batch-size", 4, "--set", "width=4")
    ok("train", "cnn3_msn", *options, "--out", tmp_path / "base")
    base = tmp_path / "base" / "cnn3_msn.safetensors"
    tuned = ("--weights", base, "--set", "train.freeze=statistics", "--out", tmp_path / "field")
    said = json.loads(ok("train", "cnn3_msn", *options, *tuned, "--json", "-").out)
    files = [tmp_path / "base.onnx", tmp_path / "field.onnx"]
    for checkpoint, out in zip((base, said["checkpoint"]), files, strict=True):
        ok("export", checkpoint, "--out", out)
    before, after = (open_model(each, step="test").info for each in files)
    assert before.graph == after.graph != ""
    assert files[0].read_bytes() != files[1].read_bytes()
    outcome = ok("bench", *files, "--device", "cpu", "--seconds", 0.5)
    assert "same graph: base, field; a difference between them is noise" in " ".join(outcome.out.split())


def test_weights_and_a_gan_or_a_study_of_what_is_frozen_are_refused(cli: Any, tmp_path: Path) -> None:
    for words, said in (
        (("train", "gan_msn", "--weights", tmp_path / "x.safetensors"), "`--weights` has no part in training a GAN"),
        (("train", "cnn3_msn", "--weights", tmp_path / "x.safetensors"), "x.safetensors does not exist"),
        (("study", "cnn3_msn", "--set", "train.freeze=backbone"), "train.freeze is 'backbone'"),
    ):
        outcome = cli(*words, "--out", tmp_path / "out")
        assert (outcome.code, said in outcome.err) == (2, True), outcome.err
