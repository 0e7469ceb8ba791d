"""`suite`: one command measures it all, kill -9 loses one case and no more, and what changed is measured again."""

import json
import shutil
import signal
import sys
from dataclasses import replace

import pytest

import msn_deploy.pipeline.suite as pipeline_suite
from msn_deploy.core.artifacts import sidecar_path
from msn_deploy.engine import what_machine
from msn_deploy.machine.state import Reading

pytestmark = pytest.mark.slow

SUITE = """
title = "Two cases"
threads = 1
precisions = {precisions}
{more}
seconds = 0.12
block_ms = 1.0
warmup_seconds = 0.0
warmup_queries = 2

[[network]]
name = "bn"
reference = "BN folded"
recipe = {{ data = "digits", width = 2, train = {{ epochs = 1 }} }}
row = [{{ name = "BN unfolded", recipe = "cnn3_bn", fold = false }}, {{ name = "BN folded", recipe = "cnn3_bn" }}]

[[network]]
name = "msn"
title = "with MSN"
recipe = {{ data = "digits", width = 2, train = {{ epochs = 1 }} }}
row = [{{ name = "MSN folded", recipe = "cnn3_msn" }}]
"""
CASES = ["bn-b1", "msn-b1"]
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from msn_deploy.cli.app import main
main(sys.argv[1:])
"""


def suite_file(folder, precisions='["fp32", "int8"]', more=""):
    path = folder / "two.toml"
    path.write_text(SUITE.format(precisions=precisions, more=more), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ok):
    """A finished suite: its file, its results, its checkpoints and models. Copy it to change it."""
    place = tmp_path_factory.mktemp("suite")
    ok("suite", suite_file(place), "--out", place / "out", "--runs", place / "runs")
    return place


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the finished suite."""
    shutil.copytree(finished, tmp_path / "suite")
    return tmp_path / "suite"


@pytest.fixture
def again(cli, place):
    """Run the copy again, with further options."""
    return lambda *more: cli("suite", place / "two.toml", "--out", place / "out", "--runs", place / "runs", *more)


def bytes_of(out):
    return {name: (out / f"{name}.json").read_bytes() for name in CASES if (out / f"{name}.json").is_file()}


def steps_said(outcome):
    return [line.split(":")[0] for line in outcome.err.splitlines() if line.startswith(("train", "export", "measure"))]


def test_a_finished_suite_holds_every_case_an_index_a_table_and_a_page(finished):
    out = finished / "out"
    index = json.loads((out / "suite.json").read_text())
    assert [case["case"] for case in index["cases"]] == CASES
    assert (index["suite"], index["threads"], index["provider"]) == ("two", 1, "cpu")
    arms = {arm["name"]: arm for arm in index["cases"][0]["arms"]}
    assert list(arms) == ["BN unfolded, FP32", "BN folded, FP32", "BN unfolded, INT8", "BN folded, INT8"]
    raw = json.loads((out / "bn-b1.json").read_text())
    for arm in raw["arms"]:
        assert arms[arm["name"]]["accuracy"] == arm["facts"]["accuracy"]
        assert arms[arm["name"]]["bytes"] == arm["facts"]["bytes"]
        assert arms[arm["name"]]["median_ms"] == arm["median_ms"]
        assert 0.1 < arm["facts"]["accuracy"] < 1
        assert len(arm["samples_ns"]) >= 20
    assert arms["BN unfolded, FP32"]["accuracy"] == arms["BN folded, FP32"]["accuracy"]
    assert arms["BN unfolded, INT8"]["to_reference"]["ratio"] > 0
    assert arms["BN folded, INT8"]["to_reference"] is None
    assert arms["BN folded, FP32"]["graph"] != arms["BN unfolded, FP32"]["graph"]
    assert "BN unfolded, INT8" in (out / "suite.md").read_text()
    page = (out / "report.html").read_text()
    assert "with MSN, batch 1" in page
    assert "//" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_results_verify_and_only_the_models_lie_elsewhere(ok, finished):
    ok("verify", finished)


def test_a_second_run_measures_nothing_and_writes_the_same(again, place):
    before = {path.name: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    outcome = again()
    assert outcome.code == 0, outcome
    assert steps_said(outcome) == []
    assert {path.name: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()} == before


def test_a_kill_loses_the_case_that_ran_and_no_more(start, again, place):
    out = place / "out"
    shutil.rmtree(out)
    options = ("--out", out, "--runs", place / "runs")
    process = start("-m", "msn_deploy", "suite", place / "two.toml", *options)
    said = []
    while not (said and said[-1].startswith("measure msn-b1")):
        line = process.stderr.readline()
        assert line, said
        said.append(line)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    kept = bytes_of(out)
    assert list(kept) == ["bn-b1"]
    assert not (out / "suite.json").exists()
    outcome = again()
    assert outcome.code == 0, outcome
    assert steps_said(outcome) == ["measure msn-b1"]
    assert bytes_of(out)["bn-b1"] == kept["bn-b1"]
    assert [case["case"] for case in json.loads((out / "suite.json").read_text())["cases"]] == CASES


def test_a_model_that_changed_is_measured_again_and_the_other_is_not(ok, again, place):
    before = bytes_of(place / "out")
    ok("train", "cnn3_msn", "--epochs", 1, "--seed", 5, "--overwrite", "--set", "width=2", "--out", place / "runs")
    outcome = again()
    assert outcome.code == 0, outcome
    assert steps_said(outcome) == ["export cnn3_msn.b1.onnx, folded", "measure msn-b1"]
    after = bytes_of(place / "out")
    assert after["bn-b1"] == before["bn-b1"]
    assert after["msn-b1"] != before["msn-b1"]


def test_other_options_are_another_measurement(again):
    assert steps_said(again("--seconds", "0.5")) == ["measure bn-b1", "measure msn-b1"]


@pytest.mark.parametrize("damage", ["cut off", "no sidecar"])
def test_a_damaged_result_is_measured_again(again, place, damage):
    path = place / "out" / "bn-b1.json"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        sidecar_path(path).unlink()
    assert steps_said(again()) == ["measure bn-b1"]


def test_an_invalid_case_is_kept_named_and_measured_again(again, place, monkeypatch):
    class Throttled:
        """A machine that counts a throttle event before every fifth block."""

        def __init__(self, root):
            self.seen = 0

        def __call__(self):
            self.seen += 1
            return Reading(
                throttled={"cpu0 core_throttle": self.seen // 5}, clocks_mhz={}, temperatures_c={}, cooling={}
            )

    (place / "out" / "msn-b1.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(
            sys.modules["msn_deploy.pipeline.bench"], "Probe", Throttled
        )  # the package has a function `bench`
        outcome = again()
    assert outcome.code == 4
    assert "1 of 2 cases are invalid: msn-b1" in outcome.err
    assert "INVALID" in outcome.out
    assert json.loads((place / "out" / "msn-b1.json").read_text())["validity"]["valid"] is False
    assert "**msn-b1 is invalid**" in (place / "out" / "suite.md").read_text()
    assert "Invalid:" in (place / "out" / "report.html").read_text()
    mended = again()
    assert mended.code == 0
    assert steps_said(mended) == ["measure msn-b1"]


def test_a_case_that_cannot_be_measured_costs_no_other(cli, place):
    file = place / "two.toml"
    file.write_text(file.read_text().replace('name = "msn"\n', 'name = "msn"\nseconds = 1e-5\n'))
    outcome = cli("suite", file, "--out", place / "out", "--runs", place / "runs")
    assert outcome.code == 4
    assert "rounds of blocks fit into" in outcome.err
    index = json.loads((place / "out" / "suite.json").read_text())
    assert [bool(case["arms"]) for case in index["cases"]] == [True, False]


def test_a_checkpoint_of_another_network_is_refused(cli, ok, place):
    ok(
        "train",
        "cnn3_msn",
        "--epochs",
        1,
        "--limit-train",
        64,
        "--set",
        "width=3",
        "--overwrite",
        "--out",
        place / "runs",
    )
    outcome = cli("suite", place / "two.toml", "--out", place / "out", "--runs", place / "runs")
    assert outcome.code == 2
    assert "is of another network: width 3, 2 is wanted" in outcome.err


def test_json_on_stdout_is_the_index(again, place):
    assert json.loads(again("--json", "-").out) == json.loads((place / "out" / "suite.json").read_text())


def test_a_plan_lists_the_steps_and_does_none(cli, tmp_path):
    outcome = cli("suite", suite_file(tmp_path), "--plan", "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    assert outcome.code == 0
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()
    assert outcome.out.count("to do") == 2 + 3 + 3 + 2  # trainings, exports, INT8 files, cases


def test_the_plan_for_a_jetson_goes_from_training_to_engines(cli, tmp_path):
    out = cli("suite", "jetson", "--plan", "--json", "-", "--out", tmp_path / "out", "--runs", tmp_path / "runs").out
    steps = [each["step"] for each in json.loads(out)]
    assert [step.split()[0] for step in steps[:4]] == ["train", "export", "make", "build"]
    assert steps[3] == "build cnn3_bn.unfolded.b1.fp16.engine, 3 times"
    rows = 3 + 3 + 5
    counts = {
        kind: sum(step.startswith(kind) for step in steps) for kind in ("train", "export", "make", "build", "measure")
    }
    assert counts == {"train": 2 + 2 + 4, "export": 2 * rows, "make": 4 * rows, "build": 4 * rows, "measure": 6}
    for precision in ("FP16", "INT8"):
        assert sum(f"make {precision}" in step for step in steps) == 2 * rows


def test_engines_without_a_gpu_or_without_tensorrt_are_refused_before_any_work(cli, tmp_path, monkeypatch):
    machine = replace(what_machine(), jetson=None, gpu_nodes=(), driver=None)
    monkeypatch.setattr(pipeline_suite, "what_machine", lambda: machine)
    monkeypatch.setattr("msn_deploy.engine.backends.what_machine", lambda: machine)
    options = ("--out", tmp_path / "out", "--runs", tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    outcome = cli("suite", "jetson", *options)
    assert outcome.code == 3
    assert "could not import a TensorRT" in outcome.err
    monkeypatch.setattr(pipeline_suite, "pick_backend", lambda *_: None)
    outcome = cli("suite", "jetson", *options)
    assert outcome.code == 3
    assert "no NVIDIA GPU" in outcome.err
    assert "--prepare" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_prepared_files_need_no_torch_on_the_device(ok, start, finished, tmp_path):
    """What --prepare makes elsewhere counts as done where torch is not installed."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    file = suite_file(tmp_path, '["fp16"]', 'provider = "engine"')
    outcome = ok("suite", file, "--prepare", "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert f"msn-deploy suite {file} --runs {tmp_path / 'runs'}" in outcome.out
    made = {path.name for path in (tmp_path / "runs" / "models").iterdir()}
    assert {"cnn3_bn.unfolded.b1.fp16.onnx", "cnn3_msn.b1.fp16.onnx"} <= made
    assert not any(name.endswith(".engine") for name in made)
    assert not (tmp_path / "out").exists()
    process = start("-c", WITHOUT_TORCH, "suite", file, "--plan", "--json", "-", "--runs", tmp_path / "runs")
    text, err = process.communicate(timeout=60)
    assert err == ""
    todo = [each["step"].split()[0] for each in json.loads(text) if not each["done"]]
    assert todo == ["build", "build", "measure", "build", "measure"]


def test_prepare_says_where_to(cli):
    outcome = cli("suite", "jetson", "--prepare")
    assert outcome.code == 2
    assert "--runs DIR" in outcome.err
