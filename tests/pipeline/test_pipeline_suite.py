"""What a suite says of its numbers, and what its cases are made of; running one is in tests/cli/test_cli_suite.py."""

import importlib
import json
from pathlib import Path

import pytest
import suite_case

from msn_deploy.core.suites import load_suite
from msn_deploy.pipeline.suite import cases_of, default_out
from msn_deploy.report.suite import index_from, markdown

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture
def suite_table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("suite_table")


def test_the_readme_shows_a_committed_suite_and_nothing_without_one(suite_table, tmp_path):
    path = tmp_path / "benchmarks" / "results" / "m" / "paper" / "suite.json"
    assert suite_table.text(path) == ""
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(suite_case.index()), encoding="utf-8")
    where = "benchmarks/results/m/paper"
    said = f"Made up: `msn-deploy suite paper`, raw samples in `{where}`.\n\n"
    assert suite_table.text(path) == said + markdown(index_from(suite_case.index()))
    assert suite_table.RESULT.parent.parent == BENCHMARKS / "results" / "epyc-2-cores"


def test_forms_of_a_case_are_precision_by_precision_and_the_baseline_comes_first():
    suite = load_suite("paper")
    case = next(each for each in cases_of(suite) if each.name == "densenet-bc-22-b32")
    assert list(case.forms)[:2] == ["BN unfolded, FP32", "BN folded, FP32"]
    assert list(case.forms)[5] == "BN unfolded, INT8"
    assert {(form.batch, form.opset, form.engine) for form in case.forms.values()} == {(32, 18, False)}
    assert [form.fold for form in case.forms.values()][:2] == [False, True]
    assert case.options.max_queries == suite.max_queries


def test_results_go_beside_the_others_in_a_checkout_and_here_elsewhere(monkeypatch, tmp_path):
    suite = load_suite("smoke")
    out = default_out(suite)
    assert (out.name, out.parent.parent) == ("smoke", BENCHMARKS / "results")
    monkeypatch.setattr("msn_deploy.pipeline.suite.builtin_folder", lambda name: tmp_path / "_recipes" / name)
    assert default_out(suite) == Path("smoke")
