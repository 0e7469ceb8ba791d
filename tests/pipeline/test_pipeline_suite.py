"""What a suite says of its numbers, and what its cases are made of; running one is in tests/cli/test_cli_suite.py."""

import importlib
import json
from pathlib import Path

import pytest
import suite_case

from msn_deploy.core.suites import load_suite
from msn_deploy.pipeline.suite import cases_of, default_out
from msn_deploy.report.suite import findings, index_from, markdown, suite_html

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"


def test_findings_say_plainly_what_is_faster_and_what_is_not():
    vgg7, consumer, producer, twin = findings(index_from(suite_case.index()))
    assert vgg7 == (
        "VGG7: MSN folded is the same graph as BN folded, so no faster; what differs is noise",
        "FP32, batch 1: 1.001 (0.991 to 1.011) SAME",  # batch 32 is invalid
    )
    assert consumer[0] == "DenseNet: MSN consumer is no faster than BN folded"
    said = "DenseNet: MSN producer is faster than BN folded in part; BN producer is the same graph as it"
    numbers = "FP32, batch 1: 0.800 (0.790 to 0.810) FASTER; FP32, batch 32: 0.800 (0.790 to 0.810) SAME"
    assert producer == (said, numbers)
    assert twin[0] == "DenseNet: BN producer is faster than BN folded in part"


def test_faster_everywhere_is_not_in_part():
    index = suite_case.index()
    index["cases"].pop()
    assert findings(index_from(index))[-2][0].startswith("DenseNet: MSN producer is faster than BN folded; BN producer")


def test_the_table_has_a_row_per_form_and_two_columns_per_batch():
    text = markdown(index_from(suite_case.index()))
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert (
        head
        == "| network | form | accuracy | file | batch 1, ms | against BN folded | batch 32, ms | against BN folded |"
    )
    assert len(rows) == 7
    assert {row.count("|") for row in (head, rule, *rows)} == {9}
    invalid = "2.500 (invalid) | 1.250 (1.240 to 1.260) SLOWER |"
    assert (
        rows[0] == f"| VGG7 | BN unfolded, FP32 | 97.53 % | 3 KiB | 2.500 | 1.250 (1.240 to 1.260) SLOWER | {invalid}"
    )
    assert "| 4.000 | \N{EN DASH} |" in rows[3]
    assert "**VGG7-b32 is invalid**: invalid: 4 of 9 blocks. Cool it." in text
    assert "ONNX Runtime 1.2.3, provider cpu, on AMD EPYC, 1 thread;" in text


def test_a_case_without_a_result_leaves_a_dash_and_a_reason():
    index = suite_case.index()
    index["cases"][3] |= {"arms": [], "invalid": "too slow"}
    text = markdown(index_from(index))
    assert (
        "| MSN producer, FP32 | 97.53 % | 3 KiB | 3.200 | 0.800 (0.790 to 0.810) FASTER | \N{EN DASH} | \N{EN DASH} |"
        in text
    )
    assert "**DenseNet-b32 is invalid**: too slow" in text
    assert "too slow" in suite_html(index_from(index), {})


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
    said = f"Made up: `msn-deploy suite paper`, raw samples in [{where}]({where}).\n\n"
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
