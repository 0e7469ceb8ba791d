"""Errors beside bad files: gates, measurements, what `--debug` and `--quiet` leave of them."""

import errno
import importlib
import json
import os
import re
from dataclasses import replace

import pytest
from cli_explained import assert_explained

from msn_deploy.core.home import builtin_folder
from msn_deploy.machine.state import Reading


def test_debug_shows_the_traceback(start, tmp_path):
    process = start("-m", "msn_deploy", "eval", "gone.onnx", "--debug", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
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


def test_a_gate_exits_1_for_a_slower_model_2_for_unlike_runs_and_4_for_a_throttled_machine(
    cli, ok, run_folder, tmp_path, monkeypatch
):
    """Each by what is in the base or on the machine, not by how long a query takes."""
    model, base = run_folder / "cnn3_msn.onnx", tmp_path / "base.json"
    command = ("bench", model, "--threads", 1, "--seconds", 0.6)
    ok(*command, "--json", base)
    gated = (*command, "--against", base, "--fail-if")
    outcome = ok(*gated, "slower:400%", "--markdown", tmp_path / "g.md", "--junit", tmp_path / "g.xml")
    assert "gate: cnn3_msn" in outcome.err
    assert "PASSED" in (tmp_path / "g.md").read_text()
    assert 'failures="0"' in (tmp_path / "g.xml").read_text()

    value = json.loads(base.read_text())
    for arm in value["arms"]:
        arm["samples_ns"] = [[max(1, ns // 20) for ns in block] for block in arm["samples_ns"]]
    fast = tmp_path / "fast.json"
    fast.write_text(json.dumps(value))
    outcome = cli(*command, "--against", fast, "--junit", tmp_path / "g.xml")
    assert outcome.code == 1
    assert_explained(outcome.err, "slower fast.json 3 % cnn3_msn")
    assert 'failures="1"' in (tmp_path / "g.xml").read_text()
    # Two results, from a device say, are compared without a model and without measuring.
    outcome = cli("bench", base, "--against", fast, "--html", tmp_path / "again.html")
    assert outcome.code == 1
    assert_explained(outcome.err, "slower fast.json 3 % cnn3_msn")
    assert (tmp_path / "again.html").is_file()
    assert "gate: cnn3_msn PASSED" in ok("bench", base, "--against", base, "--fail-if", "slower:400%").err
    outcome = cli("bench", base)
    assert outcome.code == 2
    assert_explained(outcome.err, "base.json result --against")

    value["environment"]["cpu"] = "another processor"
    fast.write_text(json.dumps(value))
    outcome = cli(*command, "--against", fast)
    assert outcome.code == 2
    assert_explained(outcome.err, "not comparable another device cpu --json")

    events = iter(range(10**6))
    hot = Reading(throttled={}, clocks_mhz={}, temperatures_c={}, cooling={})
    monkeypatch.setattr(
        importlib.import_module("msn_deploy.pipeline.bench"),
        "Probe",
        lambda root: lambda: replace(hot, throttled={"oc1": next(events) // 3}),
    )
    outcome = cli(*gated, "slower:400%", "--json", tmp_path / "hot.json", "--markdown", tmp_path / "g.md")
    assert outcome.code == 4
    assert_explained(outcome.err, "invalid blocks oc1 measure again")
    assert json.loads((tmp_path / "hot.json").read_text())["validity"]["valid"] is False
    assert "INVALID" in (tmp_path / "g.md").read_text()


def test_training_that_diverges_exits_1(cli, tmp_path):
    recipe = (builtin_folder("models") / "cnn3_none.toml").read_text().replace('"adam"', '"sgd"')
    (tmp_path / "wild.toml").write_text(recipe)
    outcome = cli("train", tmp_path / "wild.toml", "--lr", 99, "--limit-train", 256, "--out", tmp_path / "run")
    assert outcome.code == 1
    assert_explained(outcome.err, "loss diverged --lr")
    assert outcome.out == ""
    assert not (tmp_path / "run" / "wild.safetensors").exists()


def broken(monkeypatch, error):
    """Make every `targets` fail with an error in a helper of ours."""
    from msn_deploy.cli import targets

    def fail(target):
        raise error

    monkeypatch.setattr(targets, "_range", fail)


def test_a_fault_of_our_own_exits_5_in_one_line_that_says_where(cli, monkeypatch):
    import inspect

    from msn_deploy.cli import targets

    broken(monkeypatch, ZeroDivisionError("division\nby zero"))
    outcome = cli("targets")
    assert (outcome.code, len(outcome.err.splitlines())) == (5, 1)
    found = re.search(
        r"ZeroDivisionError at msn_deploy/cli/targets\.py:(\d+): division by zero; .*--debug", outcome.err
    )
    first, count = inspect.getsourcelines(targets.command)[1], len(inspect.getsourcelines(targets.command)[0])
    assert first <= int(found[1]) < first + count
    assert "Traceback" not in outcome.err
    debugged = cli("targets", "--debug")
    assert debugged.code == 5
    assert "Traceback" in debugged.err
    assert "in fail" in debugged.err


def test_a_fault_leaves_stdout_to_json_alone(cli, monkeypatch):
    from msn_deploy.cli import targets

    monkeypatch.setattr(targets.output, "plain", lambda value: 1 / 0)
    outcome = cli("targets", "--json", "-")
    assert (outcome.code, outcome.out) == (5, "")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x.onnx"), 2, "out/x.onnx No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x Permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 5, "FileNotFoundError targets.py"),
        (MemoryError("8.00 GiB"), 2, "memory 8.00 GiB"),
        (RecursionError("too deep"), 5, "RecursionError targets.py"),
    ],
)
def test_what_the_machine_refuses_is_not_our_fault(cli, monkeypatch, error, code, words):
    broken(monkeypatch, error)
    outcome = cli("targets")
    assert outcome.code == code
    assert_explained(outcome.err, words)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_said_once(start):
    with open("/dev/full", "w") as full:
        process = start("-m", "msn_deploy", "targets", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert_explained(err, "No space left on device")
