"""The paper's own tables, proved on small files in the true formats of SVHN and CIFAR-10."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msn_deploy.core.errors import MissingDependency

savemat = pytest.importorskip("scipy.io").savemat

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
OWN = sorted(path.stem for path in (BENCHMARKS / "tables" / "paper").glob("*.toml"))
SMALL = {"svhn-vgg7", "cifar10-densenet-bc", "cifar10-gan"}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    import paper
    import paper_tables

    yield type("Scripts", (), {"paper": paper, "paper_tables": paper_tables})
    sys.path.remove(str(BENCHMARKS))


class _Here:
    """A pool that does its work in this process, at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def desk(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tables with small networks, and `MSN_DEPLOY_DATA`, empty."""
    (tmp_path / "tables").mkdir()
    for name in SMALL:
        text = (BENCHMARKS / "tables" / "paper" / f"{name}.toml").read_text(encoding="utf-8")
        text = text.replace("seeds = [0, 1, 2]", "seeds = [0]").replace("batch_size = 64", "batch_size = 8")
        text = text.replace("[recipe]\n", "[recipe]\nwidth = 2\n").replace("width = 64\n", "")
        if "densenet" in name:
            text = text.replace("[recipe]\n", '[recipe]\nnet = "densenet_bc_22"\n')
        (tmp_path / "tables" / f"{name}.toml").write_text(text)
    monkeypatch.setattr(scripts.paper_tables, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(scripts.paper_tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(scripts.paper_tables, "STEPS", 2)
    monkeypatch.setattr(scripts.paper, "ProcessPoolExecutor", _Here)
    monkeypatch.setattr(scripts.paper, "as_completed", list)
    monkeypatch.setenv("MSN_DEPLOY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _write_svhn(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", 24), ("test", 12)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


def _write_cifar(folder: Path) -> None:
    rng = np.random.default_rng(1)
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (20 if name == "test_batch" else 5, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records.tobytes())


def _run(scripts: Any, desk: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    command = [
        "paper_tables.py",
        "--jobs",
        "1",
        "--threads",
        str(torch.get_num_threads()),
        "--work",
        str(desk / "work"),
    ]
    monkeypatch.setattr(sys, "argv", [*command, *arguments])
    scripts.paper_tables.main()


def test_the_tables_ask_for_what_the_authors_trained(scripts: Any) -> None:
    found = {name: scripts.paper.runs_of(BENCHMARKS / "tables" / "paper" / f"{name}.toml") for name in OWN}
    assert set(found) == SMALL | {"svhn-vgg7-fast", "cifar10-densenet-bc-fast"}
    for name, runs in found.items():
        assert len({run.key for run in runs}) == len(runs)
        norms = {run.recipe.norm for run in runs}
        assert norms == ({"sn", "msn"} if "gan" in name else {"bn", "sn", "msn"})
        for run in runs:
            options = run.recipe.train
            assert (options.epochs, options.batch_size, options.schedule, options.warm_up) == (400, 64, "constant", 0.0)
            assert (options.power_iterations, run.recipe.init) == (100, "plain")
            assert run.recipe.data == name.partition("-")[0]
            wanted = 2e-4 if "gan" in name else 0.1 if "fast" in name else 1e-3
            assert options.learning_rate == wanted


def test_without_data_nothing_is_trained_or_downloaded(
    scripts: Any, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("msn_deploy.data.sources.download", lambda *_: pytest.fail("it downloads"))
    with pytest.raises(MissingDependency):
        _run(scripts, desk, monkeypatch)
    assert capsys.readouterr().out.count("left out") == 3
    _write_cifar(desk / "data" / "cifar10")
    with pytest.raises(MissingDependency, match=r"train_32x32\.mat.*--data svhn=FOLDER"):
        _run(scripts, desk, monkeypatch, "cifar10-densenet-bc", "svhn-vgg7")
    assert not (desk / "work").exists()
    _run(scripts, desk, monkeypatch, "--estimate")
    told = capsys.readouterr().out
    assert told.count("left out") == 1
    assert "1200 epochs to do" not in told
    assert len(re.findall(r"cifar10-\S+  \w+: \d+ ms a step, 400 epochs to do: ", told)) == 5
    assert not (desk / "work").exists()
    assert not (desk / "results").exists()


@pytest.mark.slow
def test_the_whole_chain_on_small_files_and_again(
    scripts: Any, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_cifar(desk / "data" / "cifar10")
    _write_svhn(desk / "elsewhere")
    arguments = ("--epochs", "1", "--data", f"svhn={desk / 'elsewhere'}")
    _run(scripts, desk, monkeypatch, *arguments)
    told = capsys.readouterr().out
    assert "0 trainings are there, 6 to do" in told
    assert not (desk / "results").exists()
    results = desk / "work" / "trial-1" / "results"
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert set(found) == SMALL
    for name in SMALL - {"cifar10-gan"}:
        runs = found[name]["runs"]
        assert [run["arm"] for run in runs] == ["BN", "SN", "MSN"]
        assert all(len(run["test_accuracies"]) == 1 and run["recipe"]["train"]["epochs"] == 1 for run in runs)
        assert all(run["recipe"]["data"] == name.partition("-")[0] for run in runs)
    gans = found["cifar10-gan"]["runs"]
    assert [(run["arm"], run["samples"], run["epochs"]) for run in gans] == [("SN", 20, 1), ("MSN", 20, 1)]
    assert all(run["judge_accuracy"] == found["cifar10-densenet-bc"]["runs"][0]["test_accuracy"] for run in gans)
    assert all(np.isfinite(run["fid"]) for run in gans)
    assert told.count("| MSN | ") == 3
    _run(scripts, desk, monkeypatch, *arguments)
    again = capsys.readouterr().out
    assert "6 trainings are there, 0 to do" in again
    assert "training 1 epochs" not in again
    assert again.count("| MSN | ") == 3
