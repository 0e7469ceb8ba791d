"""kill -9 at any moment of export, calibrate, build-engine: the old file, the new one, or none; never half of one."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from msn_deploy.core.artifacts import publish, read_sidecar, sha256_of, sidecar_path
from msn_deploy.core.partials import claimed

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("cli_fork_server.py")
OLD = b"what an earlier run had left here" * 1000
TIMED_KILLS = 6

# source, options, and the files that the command writes into its folder. An ONNX file is exported: how long torch takes
# to write one is not what these tests are about.
COMMANDS = {
    "export": ("cnn3_bn.unfolded.onnx", ["--no-simplify", "--out", "{}/net.onnx"], ["net.onnx", "net.fold.json"]),
    "calibrate": ("cnn3_msn.onnx", ["--samples", "64", "--out", "{}/net.int8.onnx"], ["net.int8.onnx"]),
    "build-engine": (
        "cnn3_msn.onnx",
        ["--precision", "fp16", "--out", "{}/net.engine"],
        ["cnn3_msn.fp16.onnx", "net.engine"],
    ),
}


class Server:
    """The other end of cli_fork_server.py, and what the undisturbed commands wrote."""

    def __init__(self, process, run_folder, place):
        self.process, self.run_folder, self.place = process, run_folder, place
        self._send([self.line(name, self.folder(f"warm {name}")) for name in COMMANDS])
        while (answer := self._receive()) != "ready":  # the warm-up prints its results
            assert answer
        self.new, self.duration = {}, {}
        for name, (_, _, outputs) in COMMANDS.items():
            folder = self.folder(f"undisturbed {name}")
            began = time.monotonic()
            assert self.run(name, folder) == 0
            self.duration[name] = time.monotonic() - began
            self.new[name] = {output: (folder / output).read_bytes() for output in outputs}

    def folder(self, name, *, old_of=None):
        """Return an empty folder, or one that holds older outputs of a command with their sidecars."""
        folder = self.place / name
        folder.mkdir()
        for output in COMMANDS[old_of][2] if old_of else ():
            publish(folder / output, lambda path: path.write_bytes(OLD), kind="onnx")
        return folder

    def line(self, name, folder):
        source, options, _ = COMMANDS[name]
        return [name, str(self.run_folder / source), *(option.format(folder) for option in options), "--quiet"]

    def run(self, name, folder, *, kill_after_s=None, die_at=None, half=None):
        """Run a command in a process of its own; return its exit status, negative for a signal."""
        order = {"args": self.line(name, folder), "watch": str(folder)}
        self._send({**order, "kill_after_s": kill_after_s, "die_at": die_at, "half": half})
        word, status = self._receive().split()
        assert word == "status"
        return int(status)

    def _send(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def _receive(self):
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server(run_folder, process_env, tmp_path_factory):
    import subprocess
    import sys

    place = tmp_path_factory.mktemp("kill")
    (place / "tmp").mkdir()
    env = {**process_env, "TMPDIR": str(place / "tmp")}  # what a killed run leaves there goes with the rest
    command = [sys.executable, str(SERVER)]
    with subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Server(process, run_folder, place)
        finally:
            process.kill()


def _assert_old_or_new(server, cli, name, folder, *, old):
    allowed_before = OLD if old else None
    for output, new in server.new[name].items():
        path = folder / output
        found = path.read_bytes() if path.exists() else None
        assert found in (allowed_before, new), f"{output} holds {len(found or b'')} bytes"
        if sidecar_path(path).exists():
            assert read_sidecar(path).sha256 == sha256_of(path)
    named = {path.name for output in COMMANDS[name][2] for path in (folder / output, sidecar_path(folder / output))}
    others = [path.name for path in folder.rglob("*") if path.is_file() and path.name not in named]
    assert all(other.startswith(".") and other.endswith(".partial") for other in others), others
    outcome = cli("verify", folder)
    assert outcome.code == 0 or "no artifact" in outcome.err, outcome
    assert ".partial" not in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_a_random_moment(server, cli, name):
    gen = random.Random(name)
    for part in range(TIMED_KILLS):
        old = part % 2 == 0
        folder = server.folder(f"timed {name} {part}", old_of=name if old else None)
        moment = (part + gen.random()) / TIMED_KILLS * server.duration[name]
        status = server.run(name, folder, kill_after_s=moment)
        assert status in (0, -signal.SIGKILL)
        _assert_old_or_new(server, cli, name, folder, old=old)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_every_step_of_writing(server, cli, name):
    for step in range(40):
        folder = server.folder(f"step {name} {step}", old_of=name)
        status = server.run(name, folder, die_at=step)
        _assert_old_or_new(server, cli, name, folder, old=True)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert 3 <= step < 40  # old sidecar away, file in, new sidecar in; twice that for two files
    assert {output: (folder / output).read_bytes() for output in server.new[name]} == server.new[name]


@pytest.mark.parametrize(("name", "output"), [(name, output) for name in COMMANDS for output in COMMANDS[name][2]])
@pytest.mark.parametrize("old", [True, False], ids=["over an old file", "into an empty folder"])
def test_death_in_the_middle_of_a_file(server, cli, name, output, old):
    """The kernel ends the process after half of the bytes, as a kill between two writes would."""
    folder = server.folder(f"half {name} {output} {old}", old_of=name if old else None)
    half = len(server.new[name][output]) // 2
    assert server.run(name, folder, half=half) == -signal.SIGXFSZ
    assert any(path.stat().st_size == half for path in folder.rglob("*")), "no file was cut off at half"
    _assert_old_or_new(server, cli, name, folder, old=old)
    assert (folder / output).exists() is old
    assert server.run(name, folder) == 0  # and what is left behind is in nobody's way
    assert (folder / output).read_bytes() == server.new[name][output]
    assert cli("verify", folder).code == 0


@pytest.mark.parametrize(
    ("made", "line"),
    [
        ("cnn3_msn.safetensors", "train cnn3_msn --epochs 1 --samples 32 --out {0}"),
        ("study.json", "study cnn3_msn --epochs 1 --samples 32 --out {0}"),
        ("suite.json", "suite smoke --out {0} --runs {0}"),
        ("net.engine", "build-engine {0}/net.onnx --precision fp32 --out {0}/net.engine"),
    ],
)
def test_a_second_run_of_the_same_file_is_refused(cli, tmp_path, made, line):
    (tmp_path / "net.onnx").write_bytes(b"is not opened")
    if line.startswith("build-engine"):
        pytest.importorskip("tensorrt_rtx")
    with claimed(tmp_path / made):
        outcome = cli(*line.format(tmp_path).split())
    assert outcome.code == 2
    assert f"another process is making {tmp_path / made} right now" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
