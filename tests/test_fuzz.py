"""The mutation harness sees each fault that it counts, and a sample of its inputs has none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 100  # inputs, of the seed 0
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    """The modules of benchmarks/fuzz that need no artifacts."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from fuzz import child, judge, kinds, mutations, values

    yield type("Fuzz", (), {"child": child, "judge": judge, "kinds": kinds, "mutations": mutations, "values": values})
    sys.path.remove(str(ROOT / "benchmarks"))


def _raises(words: list[str]) -> int:
    raise KeyError("weights")


def _fails(code: int, text: str = "net.onnx is no model.\n") -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        sys.stderr.write(f"msn-deploy: {text}")
        return code

    return command


def _writes(path: str, content: bytes = b"{") -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        Path(path).write_bytes(content)
        return 0

    return command


def _allocates(words: list[str]) -> int:
    bytearray(8 << 30)
    return 0


def _out_of_memory(words: list[str]) -> int:
    try:
        return _allocates(words)
    except MemoryError:
        return _fails(2, "the machine has too little memory for this.\n")(words)


def _connects(words: list[str]) -> int:
    socket.socket().connect_ex(("127.0.0.1", 9))
    return 0


def _starts(words: list[str]) -> int:
    subprocess.run(["true"])
    return 0


def _prints(text: str) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        sys.stdout.write(text)
        return 0

    return command


def _sleeps(words: list[str]) -> int:
    while True:
        time.monotonic()


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (_raises, "traceback"),
        (lambda words: os.kill(os.getpid(), 9), "crash"),
        (lambda words: 7, "exit code"),
        (_fails(5), "internal"),
        (_sleeps, "hang"),
        (_out_of_memory, "memory"),
        (_fails(2, "a" * 700 + "\n"), "long"),
        (_fails(2, "a\nb\nc\nd\n"), "long"),
        (_fails(2, "\x1b[31mred.\n"), "control"),
        (_prints("a\u202eb\n"), "control"),
        (lambda words: 2, "silent"),
        (_writes("out/.net.onnx.abc.partial"), "half"),
        (_writes("out/net.json"), "half"),
        (_writes("tmp/left"), "half"),
        (_writes("in/net.onnx"), "changed"),
        (_writes("victim/more"), "outside"),
        (_writes("/var/tmp/of-the-harness"), "outside"),
        (_starts, "started"),
        (_connects, "connected"),
    ],
)
def test_each_fault_is_seen(
    fuzz: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[[list[str]], int], fault: str
) -> None:
    found = _judged(fuzz, monkeypatch, tmp_path, command)
    assert fault in found
    assert found <= {fault, "traceback", "silent"}
    assert not Path("/var/tmp/of-the-harness").exists()


def test_what_is_well_is_not_a_fault(fuzz: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for at, command in enumerate(
        (_writes("out/net.json", b"{}"), _fails(2), _fails(3), _prints("fine, é\n"), _writes("home/x"))
    ):
        assert _judged(fuzz, monkeypatch, tmp_path / str(at), command) == set()


def _judged(fuzz: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, command: Callable[[list[str]], int]) -> set[str]:
    for below in ("in", "out", "home", "tmp", "victim"):
        (folder / fuzz.kinds.CWD / below).mkdir(parents=True)
    (folder / fuzz.kinds.CWD / "in" / "net.onnx").write_bytes(b"a model")
    monkeypatch.setattr(fuzz.child, "main", command)
    before = fuzz.judge.snapshot(folder)
    done = fuzz.child.run(["eval", "in/net.onnx"], folder, limit_s=0.5 if command is _sleeps else 20.0)
    given = fuzz.kinds.Input("onnx", ["eval", "in/net.onnx"], "in/net.onnx")
    return {what for what, _ in fuzz.judge.faults_of(done, given, folder, before)}


def test_a_mutation_is_a_function_of_its_seed_and_most_change_something(fuzz: Any) -> None:
    files = {"a.json": b'{"a": [1, {"b": "text"}], "c": 2.5}', "r.toml": b'name = "r"\n\n[train]\nepochs = 2\n',
             "t.csv": b"file,label\n0.png,1\n", "e.engine": bytes(range(200))}  # fmt: skip
    for name, raw in files.items():
        made = [fuzz.mutations.mutated(name, raw, Random(seed)) for seed in range(200)]
        assert made == [fuzz.mutations.mutated(name, raw, Random(seed)) for seed in range(200)]
        assert sum(each != raw for each in made) > 150
        assert len(set(made)) > 100


@pytest.mark.slow
def test_a_sample_of_all_kinds_passes(tmp_path: Path) -> None:
    """The same inputs each time. Of others: make fuzz."""
    out = tmp_path / "fuzz.json"
    words = [
        "-m",
        "fuzz",
        "--inputs",
        SAMPLE,
        "--seed",
        0,
        "--jobs",
        1,
        "--quick",
        "--work",
        tmp_path / "work",
        "--out",
        out,
    ]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = json.loads(out.read_text())["runs"]
    assert told["inputs"] == SAMPLE
    assert not any(told["faults"].values())
    assert sum(told["exit_codes"].values()) == SAMPLE
    assert len(told["exit_codes_by_kind"]) > 20
