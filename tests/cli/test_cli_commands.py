"""Each command once, on a small real run: does it do what it is for, and say so in its JSON?"""

import json
import math
import re
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import read_sidecar, sha256_of
from msn_deploy.core.model_info import METADATA_KEY, info_from_json

VERDICTS = {"FASTER", "SLOWER", "SAME", "AMBIGUOUS"}


def test_train_reports_its_history_as_json(ok, tmp_path):
    outcome = ok("train", "cnn3_msn", "--epochs", 2, "--limit-train", 256, "--out", tmp_path, "--json", "-")
    result = json.loads(outcome.out)
    assert [entry["epoch"] for entry in result["history"]] == [1, 2]
    assert result["history"][1]["train_loss"] < result["history"][0]["train_loss"]
    assert 0.3 < result["accuracy"] <= 1
    assert result["accuracy"] == result["history"][-1]["test_accuracy"]
    assert (result["sigma_error"], result["sigma_layer"]) == tuple(
        result["history"][-1][key] for key in ("sigma_error", "sigma_layer")
    )
    assert (tmp_path / "cnn3_msn.safetensors").is_file()
    logged = [json.loads(line) for line in (tmp_path / "cnn3_msn.history.jsonl").read_text().splitlines()]
    assert logged == result["history"]


def test_train_options_reach_the_checkpoint(ok, tmp_path):
    from msn_deploy.training import load_checkpoint

    options = ["--norm", "msn-affine", "--epochs", 1, "--batch-size", 16, "--lr", 0.002, "--seed", 3]
    outcome = ok("train", "cnn3_bn", *options, "--limit-train", 64, "--device", "cpu", "--out", tmp_path)
    assert "cnn3 with msn-affine, 1 epoch on digits" in outcome.out
    _, info = load_checkpoint(tmp_path / "cnn3_msn_affine.safetensors")
    chosen = info.recipe["train"]
    assert (info.norm, chosen["epochs"], chosen["batch_size"], chosen["learning_rate"], chosen["seed"]) == (
        "msn-affine",
        1,
        16,
        0.002,
        3,
    )


def test_trained_networks_tell_digits_apart(ok, run_folder):
    for name in ("cnn3_msn", "cnn3_bn"):
        result = json.loads(ok("eval", run_folder / f"{name}.safetensors", "--json", "-").out)
        assert 0.85 < result["accuracy"] <= 1, name
        assert result["samples"] == 364


@pytest.mark.parametrize("method", ["entropy", "minmax", "percentile", "mse"])
def test_calibrate_makes_a_small_int8_file(ok, run_folder, tmp_path, method):
    out = tmp_path / "net.int8.onnx"
    outcome = ok("calibrate", run_folder / "cnn3_msn.onnx", "--method", method, "--samples", 48, "--out", out)
    assert "from 48 samples" in outcome.out
    assert out.stat().st_size < 0.35 * (run_folder / "cnn3_msn.onnx").stat().st_size
    side = read_sidecar(out)
    assert side.config["method"] == method
    assert {parent.role for parent in side.parents} == {"onnx", "data:train"}


def test_calibrate_by_a_recipe_with_flags_above_it(ok, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('data = "digits"\nsamples = 120\nseed = 4\nmethod = "mse"\n')
    out = tmp_path / "net.int8.onnx"
    command = ("calibrate", run_folder / "cnn3_msn.onnx", "--recipe", "mine.toml", "--out", out, "--no-cache")
    text = ok(*command, "--samples", 130, "--sufficiency", "--table", "trt-8.6").out
    assert "4 activation scales (mse) from 130 samples" in text
    assert "cache" not in text.replace("net.int8.cache", "")
    assert re.search(r"^ +64 +\d+\.\d% +\d+\.\d% +\d+\.\d% to \d+\.\d%$", text, re.M)
    assert (tmp_path / "net.int8.cache").read_text().startswith("TRT-8600-EntropyCalibration2\n")
    config = read_sidecar(out).config
    assert (config["samples"], config["seed"], config["method"]) == (130, 4, "mse")
    ok("verify", tmp_path, "--no-data")
    result = json.loads(
        ok("calibrate", run_folder / "cnn3_msn.onnx", "--recipe", "digits", "--out", out, "--json", "-").out
    )
    kept = result["sqnr_db_by_method"]
    assert (result["samples"], result["drift"], len(kept)) == (256, [], 4)
    assert result["method"] == max(kept, key=kept.get)
    assert "scales" in result["cache"]


def test_int8_is_as_accurate_as_fp32(ok, run_folder):
    accuracy = [
        json.loads(ok("eval", run_folder / name, "--json", "-").out)["accuracy"]
        for name in ("cnn3_msn.onnx", "cnn3_msn.fp16.onnx", "cnn3_msn.int8.onnx")
    ]
    assert max(accuracy) - min(accuracy) <= 0.01


def test_build_engine_reports_the_engine(ok, run_folder, tmp_path):
    out = tmp_path / "net.engine"
    source = run_folder / "cnn3_msn.int8.onnx"
    command = ["build-engine", source, "--precision", "int8", "--backend", "tensorrt-rtx", "--target", "rtx-sm89"]
    result = json.loads(ok(*command, "--out", out, "--json", "-").out)
    assert result["engine"]["int8_convs"] == 3
    assert result["engine"]["target"] == "rtx-sm89"
    assert result["engine"]["plan_bytes"] == out.stat().st_size
    assert read_sidecar(out).parents[0].sha256 == sha256_of(source)
    assert result["onnx"] == str(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.engine", "net.plan.json"]


def test_engines_of_the_run_name_the_typed_file_they_came_from(run_folder):
    for precision in ("fp16", "int8"):
        side = read_sidecar(run_folder / f"cnn3_msn.{precision}.engine")
        assert side.parents[0].file == f"cnn3_msn.{precision}.onnx"
        assert side.parents[0].sha256 == sha256_of(run_folder / f"cnn3_msn.{precision}.onnx")
        assert side.facts["precision"] == precision


def test_eval_writes_json_and_agrees_across_the_export(ok, run_folder, tmp_path):
    results = {}
    for name in ("cnn3_msn.safetensors", "cnn3_msn.onnx"):
        out = tmp_path / f"{name}.eval.json"
        outcome = ok("eval", run_folder / name, "--threads", 1, "--json", out)
        results[name] = json.loads(out.read_text())
        assert f"accuracy {results[name]['accuracy']:.2%} on 364 test images of digits" in outcome.out
    first, second = results.values()
    assert first["predictions"] == second["predictions"]
    assert first["accuracy"] == second["accuracy"]
    assert second["sha256"] == sha256_of(run_folder / "cnn3_msn.onnx")
    fewer = json.loads(ok("eval", run_folder / "cnn3_msn.onnx", "--samples", 50, "--json", "-").out)
    assert fewer["samples"] == 50


def test_eval_takes_a_folder_of_images(ok, run_folder, digit_images, tmp_path):
    for path in digit_images:
        label = path.stem.rpartition("_")[2]
        target = tmp_path / "test" / label / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(exist_ok=True)
    result = json.loads(ok("eval", run_folder / "cnn3_msn.onnx", "--data", tmp_path, "--json", "-").out)
    assert result["samples"] == len(digit_images)
    assert result["accuracy"] >= 0.8


def test_bench_writes_json_and_a_page(ok, run_folder, tmp_path):
    names = ("cnn3_bn.unfolded", "cnn3_bn", "cnn3_msn")
    files = [run_folder / f"{name}.onnx" for name in names]
    command = ["bench", *files[1:], "--baseline", files[0], "--seconds", 0.6, "--threads", 1]
    outcome = ok(*command, "--json", tmp_path / "bench.json", "--html", tmp_path / "report.html")
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["baseline"] == "cnn3_bn.unfolded"
    assert [arm["name"] for arm in result["arms"]] == list(names)
    for arm, file in zip(result["arms"], files, strict=True):
        assert {"median_ms", "p90_ms", "p99_ms", "ratio", "ratio_interval", "verdict"} <= arm.keys()
        assert 0 < arm["median_ms"] < 1000
        assert arm["p90_ms"] is None or arm["p90_ms"] >= arm["median_ms"]
        assert arm["ratio_interval"][0] <= arm["ratio"] <= arm["ratio_interval"][1]
        assert arm["verdict"] in VERDICTS
        assert math.isfinite(arm["ratio"])
        assert arm["facts"]["sha256"] == sha256_of(file)
        assert arm["name"] in outcome.out
    assert [arm["facts"]["runtime_norm_fusions"] for arm in result["arms"]] == ["off", "on", "on"]
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert all(name in page for name in names)
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere
    for name in ("bench.json", "report.html"):
        parents = read_sidecar(tmp_path / name).parents
        assert [parent.sha256 for parent in parents if parent.role == "model"] == [sha256_of(file) for file in files]
        assert [(parent.role, parent.file) for parent in parents[len(files) :]] == [("data:test", "digits")]


def test_files_carry_the_hash_of_their_own_graph_and_bench_says_which_are_the_same(ok, run_folder):
    import onnx

    from msn_deploy.model.identity import structural_hash

    told = {}
    for name in ("cnn3_msn", "cnn3_bn", "cnn3_bn.unfolded", "cnn3_msn.int8", "cnn3_msn.fp16"):
        model = onnx.load(run_folder / f"{name}.onnx")
        text = next(each.value for each in model.metadata_props if each.key == METADATA_KEY)
        told[name] = info_from_json(text, source=name).graph
        assert told[name] == structural_hash(model)
    assert told["cnn3_msn"] == told["cnn3_bn"]
    assert len(set(told.values())) == 4
    names = ("cnn3_bn.unfolded", "cnn3_msn", "cnn3_bn", "cnn3_msn.int8")
    out = ok("bench", *(run_folder / f"{name}.onnx" for name in names), "--threads", 1, "--seconds", 0.6).out
    (line,) = (line for line in out.splitlines() if line.startswith("same graph"))
    assert line.startswith("same graph: cnn3_msn, cnn3_bn; ")


def test_bench_times_the_layers_of_what_really_ran(ok, run_folder, tmp_path):
    files = [run_folder / f"{name}.onnx" for name in ("cnn3_bn.unfolded", "cnn3_bn")]
    command = ["bench", *files, "--threads", 1, "--seconds", 0.6, "--batch", 1, "--layers"]
    outcome = ok(*command, "--json", tmp_path / "bench.json", "--html", tmp_path / "report.html")
    unfolded, folded = json.loads((tmp_path / "bench.json").read_text())["arms"]
    kinds = [[layer["operator"] for layer in arm["layers"]["layers"]] for arm in (unfolded, folded)]
    # Timed with the norm fusions off, as it was measured; on x86 ONNX Runtime runs the norm as a depthwise convolution.
    assert sum(kind in ("Conv", "BatchNormalization") for kind in kinds[0]) > kinds[1].count("Conv")
    costs = [arm["layers"]["cost"] for arm in (unfolded, folded)]
    assert costs[0]["flops"] > costs[1]["flops"] > 0
    assert costs[0]["activation_bytes"] > costs[1]["activation_bytes"]
    assert unfolded["layers"]["limits"] is None  # nothing is known of this processor, and nothing made up
    assert "allows" not in outcome.out
    for arm in (unfolded, folded):
        assert f"{arm['name']}: {len(arm['layers']['layers'])} layers" in outcome.out
        slowest = max(arm["layers"]["layers"], key=lambda layer: layer["us"])
        assert slowest["name"] in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "Where the time goes" in (tmp_path / "report.html").read_text()


def test_bench_json_to_stdout_is_json_alone(ok, run_folder):
    outcome = ok("bench", run_folder / "cnn3_msn.onnx", "--seconds", 0.6, "--threads", 1, "--json", "-")
    (arm,) = json.loads(outcome.out)["arms"]
    assert (arm["ratio"], arm["verdict"]) == (1, "SAME")


def test_verify_accepts_the_run(ok, run_folder):
    findings = json.loads(ok("verify", run_folder, "--json").out)
    assert {finding["verdict"] for finding in findings} == {"ok"}
    assert {"cnn3_msn.safetensors", "cnn3_msn.onnx", "cnn3_msn.int8.onnx", "cnn3_msn.int8.engine"} <= {
        finding["file"] for finding in findings
    }


def test_targets_lists_jetsons(ok):
    text = ok("targets").out
    assert all(name in text for name in ("orin-nano-8gb", "agx-orin-64gb", "thor-t5000", "rtx-sm86"))
    rows = json.loads(ok("targets", "--json").out)
    assert next(row for row in rows if row["name"] == "orin-nano-8gb")["compute_capability"] == "8.7"


def test_doctor_judges_this_machine(cli):
    outcome = cli("doctor", "--json")
    found = {check["name"]: check for check in json.loads(outcome.out)}
    assert found["torch"]["verdict"] == "ok"
    assert {"python", "onnxruntime", "tensorrt", "gpu", "memory", "disk"} <= found.keys()
    problems = [check for check in found.values() if check["verdict"] == "problem"]
    assert outcome.code == (3 if problems else 0)
    table = cli("doctor").out
    assert all(name in table for name in found)


def test_doctor_counts_the_model_that_will_be_built(cli, tmp_path):
    (tmp_path / "large.onnx").write_bytes(bytes(3 * 2**20))
    found = [
        next(check["found"] for check in json.loads(cli("doctor", *model, "--json").out) if check["name"] == "memory")
        for model in ([], [tmp_path / "large.onnx"])
    ]
    assert all("a build may take" in text for text in found)
    outcome = cli("doctor", tmp_path / "gone.onnx")
    assert outcome.code == 2
    assert "gone.onnx does not exist" in outcome.err


def test_what_the_library_notes_is_shown_once_and_not_with_quiet(capsys):
    import logging

    from msn_deploy.cli import output

    for quiet, wanted in ((False, "a note\n"), (True, "")):
        output.start(quiet=quiet)
        for _ in range(2):
            logging.getLogger("msn_deploy.data").info("a %s", "note", extra={"note": True})
        assert capsys.readouterr().err == wanted


def test_quiet_silences_warnings_and_not_results(ok, run_folder, tmp_path):
    few = ("calibrate", run_folder / "cnn3_msn.onnx", "--samples", 20, "--out", tmp_path / "x.onnx")
    loud, quiet = ok(*few), ok(*few, "--quiet")
    assert "20 calibration images are few" in loud.err
    assert loud.err.splitlines().count("train: 1433 images, 10 classes, 8x8 grey -> 28x28 grey") == 1
    assert quiet.err == ""
    assert quiet.out != ""


def test_version_and_no_arguments(ok):
    from msn_deploy import __version__

    assert ok("--version").out == f"msn-deploy {__version__}\n"
    assert ok().out == ok("--help").out
