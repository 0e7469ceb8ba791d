"""A whole small run: every file has a sidecar that says what it came from, and a flipped byte in any file is named."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from msn_deploy.core.artifacts import read_sidecar, sidecar_path
from msn_deploy.data.sources import is_as_recorded
from msn_deploy.pipeline.verify import first_broken, verify_folder

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
CHECKPOINT, ONNX, INT8 = "cnn3_msn.safetensors", "cnn3_msn.onnx", "cnn3_msn.int8.onnx"
# artifact: kind, (role, file) of each parent, options that have to be told, tools whose version has to be told
DATA = [("data:train", "digits"), ("data:test", "digits")]
MODELS = [("model", ONNX), ("model", INT8), ("data:test", "digits")]
TRAINED = {"recipe", "limit_train", "device", "threads", "processes"}
MEASURED = {"baseline", "profile", "options"}
RUN = {
    CHECKPOINT: ("checkpoint", DATA, TRAINED, {"torch", "numpy", "pillow", "safetensors"}),
    "cnn3_msn.history.jsonl": ("history", DATA, TRAINED, {"torch", "numpy", "pillow"}),
    "cnn3_msn.curves.png": ("curves", [("history", "cnn3_msn.history.jsonl")], {"panels"}, {"matplotlib"}),
    "train.json": (
        "result",
        [("subject", CHECKPOINT), ("subject", "cnn3_msn.history.jsonl")],
        {"recipe", "epochs", "settings", "seed"},
        {"torch", "numpy"},
    ),
    ONNX: (
        "onnx",
        [("checkpoint", CHECKPOINT)],
        {"recipe", "opset", "opsets", "dynamic_batch", "batch", "input_shape", "fold", "simplify"},
        {"torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"},
    ),
    "cnn3_msn.fold.json": ("fold-certificate", [("onnx", ONNX)], set(), {"torch", "onnx"}),
    INT8: (
        "onnx",
        [("onnx", ONNX), ("data:train", "digits")],
        {"recipe", "precision", "data", "method", "samples", "preprocess"},
        {"onnx", "onnxruntime", "numpy"},
    ),
    "accuracy.json": (
        "result",
        [("subject", INT8), ("data:test", "digits")],
        {"model", "data", "samples", "judge", "threads"},
        {"onnxruntime", "numpy"},
    ),
    "bench.json": ("bench", MODELS, MEASURED, {"onnxruntime", "numpy"}),
    "report.html": ("report", MODELS, MEASURED, {"onnxruntime", "numpy"}),
    "cnn3_msn.int8.engine": (
        "engine",
        [("onnx", INT8), ("data:train", "digits")],
        {"precision", "target", "backend", "batch", "workspace_mib", "timing_cache", "optimization_level"},
        {"tensorrt_rtx_cu13", "onnx"},
    ),
}
if not HAS_RTX:
    del RUN["cnn3_msn.int8.engine"]
NAMES = [each for name in RUN for each in (name, sidecar_path(Path(name)).as_posix())]


@pytest.fixture
def damaged(whole_run, tmp_path):
    """A copy of the run to damage."""
    return shutil.copytree(whole_run, tmp_path / "run")


def _flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1 << random.Random(at).randrange(8)
    path.write_bytes(raw)


def test_the_run_leaves_these_files_and_no_other(whole_run):
    files = (path for path in whole_run.rglob("*") if path.is_file())
    assert sorted(path.relative_to(whole_run).as_posix() for path in files) == sorted(NAMES)
    findings = verify_folder(whole_run, data=is_as_recorded)
    assert {finding.file: finding.verdict for finding in findings} == dict.fromkeys(RUN, "ok")
    states = {link.state for finding in findings for link in finding.parents}
    assert states == {"here", "as recorded"}


@pytest.mark.parametrize("name", RUN)
def test_a_sidecar_says_all_of_where_a_file_came_from(whole_run, name):
    kind, parents, options, tools = RUN[name]
    side = read_sidecar(whole_run / name)
    assert side.kind == kind
    assert [(parent.role, parent.file) for parent in side.parents] == parents
    assert options <= side.config.keys()
    assert tools | {"msn-deploy"} <= side.versions.keys()
    assert all(parent.read for parent in side.parents if parent.is_data)
    if name != "train.json" and "recipe" in options:
        assert side.config["recipe"]["train"]["warm_up"] == 0.3  # nobody typed that


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_byte_anywhere_is_named(whole_run, damaged, name):
    path = damaged / name
    size = path.stat().st_size
    gen = random.Random(name)
    for at in (0, size - 1, *(gen.randrange(size) for _ in range(3))):
        _flip(path, at)
        findings = verify_folder(damaged)
        broken = [finding.file for finding in findings if finding.verdict == "broken"]
        assert broken == [name], f"byte {at} of {size}"
        assert first_broken(findings).file == name
        shutil.copy(whole_run / name, path)


def test_verify_shows_the_chain_down_to_the_data(ok, whole_run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = ok("verify", whole_run, "-v").out
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    leaf = f"cnn3_msn.int8.engine <- {INT8}" if HAS_RTX else f"accuracy.json <- {INT8}"
    assert f"{leaf} <- {ONNX} <- {CHECKPOINT} <- digits (data)" in text
    assert f"bench.json <- {ONNX} and 1 more <- {CHECKPOINT} <- digits (data)" in text
    digest = next(parent.sha256 for parent in read_sidecar(whole_run / INT8).parents if parent.is_data)
    assert f"digits: data:train {digest[:12]}, as recorded" in out.splitlines()
    assert f"digits: data:train {digest[:12]}, elsewhere" in ok("verify", whole_run, "--no-data", "-v").out.splitlines()
    summary = f"{len(RUN)} of {len(RUN)} files are as recorded, made from digits (as recorded)"
    assert ok("verify", whole_run).out.splitlines() == [summary]


def test_verify_prints_the_links_as_json(ok, whole_run):
    found = {finding["file"]: finding for finding in json.loads(ok("verify", whole_run, "--json").out)}
    first, second = found[INT8]["parents"]
    assert (first["role"], first["name"], first["state"]) == ("onnx", ONNX, "here")
    assert (second["role"], second["name"], second["state"]) == ("data:train", "digits", "as recorded")
    assert found[INT8]["kind"] == "onnx"


def test_the_first_broken_link_is_named_and_counted(cli, damaged):
    _flip(damaged / "report.html", 5)
    _flip(damaged / CHECKPOINT, 5)
    outcome = cli("verify", damaged)
    assert outcome.code == 1
    assert f"2 of {len(RUN)} files are broken, the first: {CHECKPOINT} (its bytes" in outcome.err
    stale = len(RUN) - 4  # the two, the history and its curves
    assert f"{stale} more come from what is broken" in outcome.err
    assert "report.html" in outcome.out
    assert "cnn3_msn.history.jsonl" not in outcome.out, "it is as recorded"


def test_images_that_changed_since_are_the_first_broken_link(cli, ok, digit_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for at in range(60):
        path = digit_images[at % len(digit_images)]
        for split in ("train", "test"):
            target = tmp_path / "mine" / split / path.stem[-1] / f"{at}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    small = ("--set", "width=2", "--batch-size", 20, "--epochs", 1, "--limit-train", 40)
    ok("train", "cnn3_msn", "--data", "mine", *small, "--out", "run")
    out = ok("verify", "run", "-v").out
    assert ("mine: data:train" in out, out.count(", elsewhere")) == (True, 2)  # a folder that the run alone names
    assert "mine (as recorded)" in ok("verify", "run", "--data").out
    changed = min((tmp_path / "mine" / "train" / "0").iterdir())  # the first image, which every subset has
    image = changed.read_bytes()
    ImageOps.invert(Image.open(changed)).save(changed)
    outcome = cli("verify", "run", "--data")
    assert outcome.code == 1
    assert "the first: mine (these images are no longer" in outcome.err
    assert ok("verify", "run", "--no-data").err == ""
    changed.write_bytes(b"no image")
    assert "the first: mine" in cli("verify", "run", "--data").err
    changed.write_bytes(image)
    assert ok("verify", "run", "--data").err == ""
    (tmp_path / "mine").rename(tmp_path / "away")
    assert "mine (elsewhere)" in ok("verify", "run", "--data").out


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        (lambda run: None, 0, ""),
        (lambda run: (run / ONNX).unlink(), 1, ONNX),
        (lambda run: (run / f"{ONNX}.json").unlink(), 0, ""),
        (lambda run: (run / ONNX).rename(run / "other.onnx"), 0, ""),
        (lambda run: shutil.rmtree(run), 2, "is not a folder"),
        (lambda run: [path.unlink() for path in run.rglob("*.json")], 2, "holds no artifact"),
    ],
    ids=["whole", "file deleted", "sidecar deleted", "renamed", "no folder", "no run"],
)
def test_exit_codes(cli, damaged, change, code, word):
    change(damaged)
    outcome = cli("verify", damaged)
    assert (outcome.code, outcome.err == "") == (code, not code)
    assert word in outcome.err


def test_a_forged_way_of_reading_data_is_not_followed(whole_run):
    recorded = next(parent for parent in read_sidecar(whole_run / CHECKPOINT).parents if parent.is_data)
    assert is_as_recorded(recorded) is True
    assert is_as_recorded(replace(recorded, sha256="0" * 64)) is False
    for change in (
        {"height_px": 10**6},
        {"first": [-1]},
        {"first": 5},
        {"split": ["train"]},
        {"more": 1},
        {"fit": None},
    ):
        assert is_as_recorded(replace(recorded, read={**recorded.read, **change})) is None, change
    assert is_as_recorded(replace(recorded, read={})) is None
    assert is_as_recorded(replace(recorded, file="no/such/folder")) is None
