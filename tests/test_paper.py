"""The tables of accuracy: they can be trained, go on where they were stopped, and are what documents say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msn_deploy.core.recipes import load_recipe
from msn_deploy.training import train

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TABLES = sorted(path.stem for path in (BENCHMARKS / "tables").glob("*.toml"))
TABLE = """
title = "a small table"
seeds = [3, 1]
limit_train = 64

[recipe]
width = 2

[train]
epochs = 2
batch_size = 16

[[arm]]
name = "BN"
recipe = "cnn3_bn"

[[arm]]
name = "MSN, plain / slow"
recipe = "cnn3_msn"
init = "plain"
train = { learning_rate = 0.003 }
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """The scripts as modules, importable in the processes that they start, too."""
    sys.path.insert(0, str(BENCHMARKS))
    import accuracy
    import cards
    import paper

    yield type("Scripts", (), {"accuracy": accuracy, "cards": cards, "paper": paper})
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("table", TABLES)
def test_a_table_asks_for_recipes_that_there_are(scripts: Any, table: str) -> None:
    from msn_deploy.nets.registry import NETS

    before = dict(NETS)
    import gap_nets

    try:
        gap_nets.register()
        runs = scripts.paper.runs_of(BENCHMARKS / "tables" / f"{table}.toml")
        assert len({run.key for run in runs}) == len(runs)
        assert "BN" in {run.arm for run in runs}
        assert {run.recipe.net for run in runs} <= {*NETS, "unet", "detector"}
        assert len({run.recipe.train.seed for run in runs}) >= 3
    finally:
        NETS.clear()
        NETS.update(before)


@pytest.mark.parametrize("table", [path.stem for path in (BENCHMARKS / "results" / "paper").glob("*.json")])
def test_a_committed_result_is_of_the_table_as_it_is(scripts: Any, table: str) -> None:
    runs = scripts.paper.runs_of(BENCHMARKS / "tables" / f"{table}.toml")
    result = scripts.accuracy.read(table)
    assert all(scripts.paper.is_current(each, runs) for each in result["runs"])
    for each in result["runs"]:
        metric = scripts.accuracy.METRICS[each["recipe"].get("task", "classification")]
        every = each[scripts.accuracy.EACH[metric]]
        assert every[-1] == each[metric]
        assert len(every) == each["recipe"]["train"]["epochs"]


@pytest.fixture
def desk(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "small.toml").write_text(TABLE)
    monkeypatch.setattr(scripts.paper, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(scripts.paper, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["paper.py", "small", "--jobs", "1", "--work", str(tmp_path / "work")])
    return tmp_path


class _InThisProcess:
    """Takes the place of a pool: a process for each training loads torch for seconds, and one of them proves enough."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> _InThisProcess:
        return self

    def __exit__(self, *cause: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done


@pytest.mark.slow
def test_a_table_is_trained_once_and_goes_on_where_it_was_stopped(
    scripts: Any, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gap_nets

    runs = scripts.paper.runs_of(desk / "tables" / "small.toml")
    assert [run.key for run in runs] == [("BN", 3), ("MSN, plain / slow", 3), ("BN", 1), ("MSN, plain / slow", 1)]
    assert (runs[1].recipe.init, runs[1].recipe.train.learning_rate, runs[0].recipe.width) == ("plain", 0.003, 2)

    def stop(done: float, total: float, note: str = "") -> None:
        if done > total / 2 + 1:
            raise KeyboardInterrupt

    half = desk / "work" / "small" / "BN-3"
    with pytest.raises(KeyboardInterrupt):
        train(runs[0].recipe, out=half, device="cpu", limit_train=64, progress=stop)
    state = next(half.glob("*.state.safetensors"))
    seconds = json.loads(next(half.glob("*.history.jsonl")).read_text().splitlines()[0])["seconds"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts.paper, "ProcessPoolExecutor", _InThisProcess)
        patch.setattr("msn_deploy.training.keep_freed_memory", lambda: None)
        patch.setattr(gap_nets, "register", lambda: None)
        scripts.paper.main()
    assert "0 trainings are there, 4 to do" in capsys.readouterr().out
    assert not state.exists()
    history = [json.loads(line) for line in next(half.glob("*.history.jsonl")).read_text().splitlines()]
    assert (len(history), history[0]["seconds"]) == (2, seconds)  # the first epoch is that of before the stop
    file = desk / "results" / "small.json"
    result = json.loads(file.read_text())
    assert [(run["arm"], run["seed"]) for run in result["runs"]] == [
        ("BN", 1), ("BN", 3), ("MSN, plain / slow", 1), ("MSN, plain / slow", 3),
    ]  # fmt: skip
    assert "cpu" in result["environment"]
    whole = train(runs[0].recipe, out=desk / "whole", device="cpu", limit_train=64)
    assert result["runs"][1]["test_accuracy"] == whole.info.metrics["test_accuracy"]
    scripts.paper.main()
    assert "4 trainings are there, 0 to do" in capsys.readouterr().out
    assert json.loads(file.read_text()) == result
    text = TABLE.replace("learning_rate = 0.003", "learning_rate = 0.004").replace("seeds = [3, 1]", "seeds = [3]")
    (desk / "tables" / "small.toml").write_text(text)
    scripts.paper.main()
    assert "1 trainings are there, 1 to do" in capsys.readouterr().out
    assert [run["recipe"]["train"]["learning_rate"] for run in json.loads(file.read_text())["runs"]] == [0.01, 0.004]


def test_the_difference_is_paired_and_its_interval_students(scripts: Any) -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    bn, msn = rng.uniform(0.9, 0.95, 4), rng.uniform(0.9, 0.95, 4)
    runs = [
        {"arm": arm, "seed": seed, "test_accuracy": float(value), "recipe": {}}
        for arm, values in (("BN", bn), ("MSN", msn))
        for seed, value in enumerate(values)
    ]
    first, second = scripts.accuracy.rows_of({"runs": [*runs, {**runs[0], "arm": "one"}]})[:2]
    assert (first.accuracy, first.deviation) == (pytest.approx(100 * bn.mean()), pytest.approx(100 * bn.std(ddof=1)))
    interval = stats.ttest_rel(msn, bn).confidence_interval(0.95)
    wanted = [100 * value for value in ((msn - bn).mean(), interval.low, interval.high)]
    assert second.difference == pytest.approx(wanted)
    assert first.difference is None
    assert scripts.accuracy.said(first)[1] == ""


def test_a_table_compares_what_its_task_is_measured_by(scripts: Any) -> None:
    runs = [
        {"arm": arm, "seed": seed, "test_mAP": 0.1, "test_mAP50": 0.8 + seed / 100, "recipe": {"task": "detection"}}
        for arm, seed in (("BN", 0), ("BN", 1), ("MSN", 0))
    ]
    assert [row.accuracy for row in scripts.accuracy.rows_of({"runs": runs})] == pytest.approx([80.5, 80.0])


def test_the_page_of_tasks_tells_tables_and_verdicts(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import task_nets

    monkeypatch.setattr(scripts.accuracy, "RESULTS", tmp_path)
    monkeypatch.setattr(task_nets, "RESULT", tmp_path / "tasks.json")
    assert task_nets.text().startswith("Not measured yet")
    runs = [
        {"arm": arm, "seed": seed, "test_mIoU": value, "recipe": {"task": "segmentation"}}
        for arm, values in (("BN", (0.5, 0.6, 0.7)), ("MSN", (0.52, 0.61, 0.72)))
        for seed, value in enumerate(values)
    ]
    (tmp_path / "scenes-unet.json").write_text(json.dumps({"title": "scenes", "runs": runs}))
    drop = {"name": "mIoU", "drop": 0.004}
    verdict = {"kind": "MIXED", "left_out": ["a", "b"], "metric": drop}
    told = {"runs": [{"table": "scenes-unet", "arm": "MSN", "verdict": verdict}]}
    (tmp_path / "tasks.json").write_text(json.dumps(told))
    *_, bn, msn, _, uneven = task_nets.text().splitlines()
    assert bn == "| scenes | BN | 60.00 ± 10.00 (3) |  |  |"
    assert msn == "| scenes | MSN | 61.67 ± 10.02 (3) | +1.67 (+0.23 to +3.10) | MIXED, 2 layers in FP16 (mIoU -0.40) |"
    assert "BN 50.0, 60.0, 70.0; MSN 52.0, 61.0, 72.0" in uneven
    monkeypatch.setattr(task_nets, "UNEVEN_POINTS", 21)
    assert task_nets.text().splitlines()[-1] == msn


def test_cards_say_what_is_counted_and_measured(scripts: Any) -> None:
    facts = json.loads(scripts.cards.COUNTED.read_text())
    assert sorted(facts) == scripts.cards.names()
    for name in scripts.cards.names():
        path = scripts.cards.MODELS / f"{name}.md"
        assert path.read_text(encoding="utf-8") == scripts.cards.card(name, facts), f"{path.name}: make readme"
    for name in ("cnn3_msn", "vgg7_bn", "gan_sn"):
        recipe = load_recipe(name)
        assert scripts.cards.counted(recipe) | scripts.cards.measured(recipe) == facts[name]
    assert scripts.cards.measured(load_recipe("vgg7_msn"))["test_accuracy"] == pytest.approx(0.9908, abs=5e-5)
    assert scripts.cards.measured(load_recipe("gan_sn")) == {}
