"""Errors beside bad files: gates, measurements, what `--debug` and `--quiet` leave of them."""

import importlib
import os

from cli_explained import assert_explained

from msn_deploy.core.recipes import builtin_folder


def test_debug_shows_the_traceback(start, tmp_path):
    process = start("-m", "msn_deploy", "eval", "gone.onnx", "--debug", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert "Traceback" in err
    assert "gone.onnx does not exist" in err


def test_quiet_still_says_what_went_wrong(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli("eval", "gone.onnx", "--quiet")
    assert outcome.code == 2
    assert_explained(outcome.err, "gone.onnx does not exist")


def test_only_a_plain_file_is_replaced(cli, run_folder, tmp_path):
    """Root could otherwise turn /dev/null into a file for everyone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    outcome = cli("eval", run_folder / "cnn3_msn.onnx", "--samples", 20, "--json", pipe)
    assert outcome.code == 2
    assert_explained(outcome.err, "pipe not a plain file")
    assert pipe.is_fifo()


def test_a_measurement_that_is_too_short_exits_4(cli, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("msn_deploy.bench.measure"), "MIN_ROUNDS", 10**6)
    out = tmp_path / "bench.json"
    outcome = cli("bench", run_folder / "cnn3_msn.onnx", "--seconds", 0.5, "--threads", 1, "--json", out)
    assert (outcome.code, outcome.out, out.exists()) == (4, "", False)
    assert_explained(outcome.err, "rounds --seconds")


def test_training_that_diverges_exits_1(cli, tmp_path):
    recipe = (builtin_folder("models") / "cnn3_none.toml").read_text().replace('"adam"', '"sgd"')
    (tmp_path / "wild.toml").write_text(recipe)
    outcome = cli("train", tmp_path / "wild.toml", "--lr", 99, "--limit-train", 256, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert_explained(outcome.err, "loss diverged --lr")
    assert outcome.out == ""
    assert not (tmp_path / "run" / "wild.safetensors").exists()
