"""`study` as a user types it: a page, numbers, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest

from msn_deploy.pipeline.verify import verify_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny_msn.toml"
    path.write_text(
        'net = "cnn3"\nnorm = "msn"\ndata = "digits"\ninput_shape = [1, 1, 28, 28]\nwidth = 2\n'
        "[train]\nepochs = 2\nbatch_size = 16\nlearning_rate = 0.01\n"
    )
    return path


def test_a_study_is_a_page_and_numbers(cli, small, tmp_path):
    out = tmp_path / "study"
    outcome = cli("study", small, "--limit-train", "160", "--every", "1", "--out", out, "--json", tmp_path / "s.json")
    assert outcome.code == 0, outcome
    assert "training tiny_bn for 2 epochs on digits" in outcome.err
    assert re.search(
        r"holds: MSN has fewer trainable parameters than BN\n    [\d,]+ against [\d,]+, 10 fewer", outcome.out
    )
    assert max(len(line) for line in outcome.out.splitlines() if str(out) not in line) <= 80
    page = (out / "study.html").read_text()
    for text in ("Mean drift", "Largest singular value", "Largest eigenvalue", "Test accuracy", "SN drifts in mean"):
        assert text in page, text
    assert page.count("<svg") == 10
    assert "<script" not in page
    assert set(re.findall(r"(?:src|href)=\"([^\"]*)", page)) == {"data:,", "https://arxiv.org/abs/1907.04003"}
    study = json.loads((out / "study.json").read_text())
    assert list(study["norms"]) == ["bn", "sn", "msn"]
    assert all(len(each["windows"]) == 5 for each in study["norms"].values())
    for bounds in (each["lipschitz"] for each in study["norms"].values()):
        assert 0 < bounds["lower"] < bounds["upper"] < bounds["upper_by_matrix"]
        assert f"{bounds['upper']:.3g}" in page
    assert study["claims"] == json.loads((tmp_path / "s.json").read_text())["claims"]
    assert {finding.verdict for finding in verify_folder(out)} == {"ok"}
    names = {path.name for path in out.iterdir()}
    assert {"tiny_bn.safetensors", "tiny_sn.safetensors", "tiny_msn.safetensors"} <= names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--norms", "bn,msm"], "unknown norm 'msm'; did you mean 'msn'"),
        (["--norms", "bn,bn"], "--norms must name different norms, got bn,bn"),
        (["--norms", ","], "--norms must name different norms, got none"),
        (["--norms", "bn", "--limit-train", "16", "--epochs", "1"], "trains too few steps for a study"),
    ],
)
def test_what_cannot_be_studied(cli, small, tmp_path, args, message):
    outcome = cli("study", small, *args, "--out", tmp_path / "s")
    assert outcome.code == 2
    assert message in outcome.err
    assert len([line for line in outcome.err.strip().splitlines() if not line.startswith(("train", "test: "))]) <= 3
    assert not (tmp_path / "s" / "study.html").exists()


def test_a_gan_is_not_studied(cli, tmp_path):
    outcome = cli("study", "gan_msn", "--out", tmp_path / "s")
    assert (outcome.code, "`study` looks at classifiers" in outcome.err) == (2, True)


def test_train_leaves_its_curves(cli, small, tmp_path):
    assert cli("train", small, "--limit-train", "32", "--out", tmp_path).code == 0
    assert (tmp_path / "tiny_msn.curves.png").read_bytes().startswith(b"\x89PNG")
