"""Hostile and damaged ONNX files: one to three lines, exit code 2, in seconds, within bounded memory."""

import json
import os
import subprocess

import onnx
import pytest
from cli_explained import assert_explained
from hostile_files import CALIBRATE_REFUSES, EXPORT_REFUSES, HOSTILE, outside, write

pytestmark = pytest.mark.slow

COMMANDS = {
    "export": ["--out", "x.onnx"],
    "eval": ["--data", "digits"],
    "bench": ["--seconds", "1"],
    "calibrate": ["--data", "digits", "--out", "x.onnx"],
    "build-engine": ["--precision", "fp32", "--target", "rtx-sm86", "--out", "x.engine"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    write(place, HOSTILE)
    write(place, EXPORT_REFUSES)
    write(place, CALIBRATE_REFUSES)
    return place


@pytest.mark.parametrize("name", HOSTILE)
def test_every_command_explains_a_hostile_file(cli, place, monkeypatch, snapshot, capfd, name):
    monkeypatch.chdir(place)
    before = snapshot(place)
    for command, options in COMMANDS.items():
        outcome = cli(command, f"{name}.onnx", *options)
        assert outcome.code == 2, (command, outcome)
        assert_explained(outcome.err, f"{name}.onnx {HOSTILE[name][1]}")
        assert outcome.out == ""
    assert capfd.readouterr() == ("", "")
    assert snapshot(place) == before


@pytest.mark.parametrize("name", EXPORT_REFUSES)
def test_export_and_calibrate_explain_what_they_do_not_take(cli, place, monkeypatch, name):
    monkeypatch.chdir(place)
    for command in ("export", "calibrate"):
        outcome = cli(command, f"{name}.onnx", *COMMANDS[command])
        assert outcome.code == 2, outcome
        assert_explained(outcome.err, f"{name}.onnx {EXPORT_REFUSES[name][1]}")


@pytest.mark.parametrize("name", CALIBRATE_REFUSES)
def test_branches_and_functions_are_exported_and_not_calibrated(cli, ok, place, monkeypatch, tmp_path, name):
    monkeypatch.chdir(place)
    outcome = cli("calibrate", f"{name}.onnx", *COMMANDS["calibrate"])
    assert outcome.code == 2
    assert_explained(outcome.err, f"{name}.onnx {CALIBRATE_REFUSES[name][1]}")
    ok("export", f"{name}.onnx", "--out", tmp_path / "plain.onnx")
    assert not onnx.load(str(tmp_path / "plain.onnx")).functions


_ALL = """
import json, resource, sys, time
from msn_deploy.cli.app import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB

orders = json.load(sys.stdin)
main(orders[0])  # warms up: imports are not what is bounded
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), size + (1 << 30)))
before = peak()
for order in orders:
    began = time.monotonic()
    code = main(order)
    print(json.dumps([order, code, peak() - before, time.monotonic() - began]))
"""


def test_memory_and_time_are_bounded(start, place):
    orders = [
        [command, f"{name}.onnx", *COMMANDS[command]]
        for name in HOSTILE
        for command in ("eval", "export", "build-engine")
    ]
    process = start("-c", _ALL, cwd=place, stdin=subprocess.PIPE)
    out, err = process.communicate(json.dumps(orders), timeout=120)
    assert process.returncode == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == len(orders)
    for order, code, mib, seconds in rows:
        assert (code, mib < 100, seconds < 20) == (2, True, True), (order, code, mib, seconds)  # a hang, no speed


def test_weights_in_other_files_are_merged_by_export_and_refused_elsewhere(ok, cli, place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(outside("w.bin").SerializeToString())
    (tmp_path / "w.bin").write_bytes(b"\0\0\0\x3f" * 108)
    for command in COMMANDS.keys() - {"export"}:
        outcome = cli(command, "net.onnx", *COMMANDS[command])
        assert outcome.code == 2
        assert_explained(outcome.err, "(w.bin) msn-deploy export net.onnx --out merged.onnx")
    ok("export", "net.onnx", "--out", "merged.onnx")
    os.remove("w.bin")
    assert cli("bench", "merged.onnx", "--seconds", "0.1").err.count("seconds")  # it got past reading
    parents = json.loads((tmp_path / "merged.onnx.json").read_text())["parents"]
    roles = [(parent["role"], parent["file"]) for parent in parents]
    assert roles == [("onnx", "net.onnx"), ("weights", "w.bin")]


def test_a_file_that_never_ends_is_not_read(cli, tmp_path):
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    outcome = cli("eval", pipe)
    assert outcome.code == 2
    assert_explained(outcome.err, "pipe.onnx plain file")


def test_a_file_beyond_what_protobuf_takes_is_not_read(cli, tmp_path):
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)
    outcome = cli("eval", path)
    assert outcome.code == 2
    assert_explained(outcome.err, "sparse.onnx 3 GiB 2 GiB")
