"""What is left when a run is killed, and when two runs write the same files at once: `make kills`.

    python benchmarks/kills.py [--kills 304] [--pairs 200] [--seed 0] [--only COMMAND] [--out FILE]

Kills: a command runs in a process group of its own, which gets SIGKILL at a random time or before a random one of its
file operations (files opened for writing, renames, removals, folders made and removed), over an empty folder or over
the files of an earlier run. At that moment every file must be whole and fit its sidecar. Then the same command runs
again (a training also with `--resume`): it must exit 0, `verify` must exit 0, and nothing may be left, neither in the
folder nor in TMPDIR, that a run without a kill doesn't leave.

Pairs: two runs of one command with different options write the same files at once; in every second pair both wait for
each other before their first rename. No sidecar may be beside another run's file. A run may be refused (exit 2) because
the other one is making that file.

Commands run in forks of this process, which has imported all that they need, so kills hit their work and not their
imports. `bench` and `suite` read a made-up clock: what they measure doesn't matter here, and a machine that is busy
would make it invalid. Each row is written when it is there; rows that the file has are not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork has none of its parent's threads

import onnx
from PIL import Image
from safetensors import safe_open

from msn_deploy.bench.measure import measure
from msn_deploy.cli.app import main as msn_deploy
from msn_deploy.core.artifacts import read_sidecar, sha256_of, sidecar_of, write_json
from msn_deploy.core.errors import InputError
from msn_deploy.core.partials import is_partial
from msn_deploy.machine.environment import machine_name, read_environment
from msn_deploy.pipeline.verify import verify_folder

SCHEMA = "msn-deploy-kills/1"
RESULTS = Path(__file__).resolve().parent / "results"
TRAINING = "--epochs 3 --samples 192 --batch-size 32 --set width=2"
STEP_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"}
MEETING_S = 1.0
SUITE = """
title = "Two rows"
threads = 1
seconds = 0.5
block_ms = 2.0
warmup_seconds = 0.0
warmup_queries = 2

[[network]]
name = "tiny"
reference = "BN"
recipe = { data = "digits", width = 2, train = { epochs = 1 } }
row = [{ name = "BN", recipe = "cnn3_bn" }, { name = "MSN", recipe = "cnn3_msn" }]
"""


@dataclass(frozen=True)
class Command:
    """A command line; {in} is the folder of the inputs, {out} the one that is looked at.

    ways: options of which the two writers of a pair have one each.
    """

    name: str
    args: str
    ways: tuple[str, str]

    def line(self, inputs: Path, out: Path, way: int) -> list[str]:
        """Return what is typed."""
        words = f"{self.name} {self.args} {self.ways[way]} --quiet".split()
        return [word.replace("{in}", str(inputs)).replace("{out}", str(out)) for word in words]


BUILD = "" if importlib.util.find_spec("tensorrt_rtx") else "--target orin-nano-8gb"
COMMANDS = [
    Command(
        "train", f"cnn3_msn {TRAINING} --overwrite --out {{out}} --json {{out}}/train.json", ("--seed 1", "--seed 2")
    ),
    Command("calibrate", "{in}/net.onnx --out {out}/net.int8.onnx", ("--samples 48", "--samples 32")),
    Command("export", "{in}/cnn3_msn.safetensors --out {out}/net.onnx", ("--opset 17", "--opset 18")),
    Command(
        "build-engine", f"{{in}}/net.onnx {BUILD} --out {{out}}/net.engine", ("--precision fp16", "--precision fp32")
    ),
    Command("bundle", "{in} --no-wheels --out {out}/net.tar", ("--target orin-nano-8gb", "--target agx-orin-32gb")),
    Command(
        "bench",
        "{in}/net.onnx {in}/net.int8.onnx --threads 1 --json {out}/bench.json --html {out}/bench.html",
        ("--seconds 0.5", "--seconds 0.6"),
    ),
    Command(
        "study",
        "cnn3_msn --norms bn,msn --epochs 2 --samples 192 --every 2 --set width=2 --out {out}",
        ("--seed 1", "--seed 2"),
    ),
    Command("suite", "{in}/two.toml --out {out}/results --runs {out}/runs", ("--seconds 0.5", "--seconds 0.6")),
]


@dataclass
class Place:
    """Where commands run: inputs, and for each case a folder of its own with out/, tmp/ and home/."""

    folder: Path
    base: dict[str, tuple[Path, float, int]] = field(default_factory=dict)
    """Of each command: the folder of a run without a kill, how long it took in seconds, and its file operations."""

    @property
    def inputs(self) -> Path:
        """A checkpoint, its ONNX files and a suite."""
        return self.folder / "inputs"

    @property
    def case(self) -> Path:
        """Where the case at hand runs."""
        return self.folder / "case"

    @property
    def out(self) -> Path:
        """What it writes."""
        return self.case / "out"

    def fresh(self, old: Path | None = None) -> None:
        """Make the folders of a case anew; old: what lies there already."""
        shutil.rmtree(self.case, ignore_errors=True)
        for name in ("tmp", "home"):
            (self.case / name).mkdir(parents=True)
        if old is None:
            self.out.mkdir()
        else:
            shutil.copytree(old, self.out)

    def left(self, known: Path) -> list[str]:
        """Return what lies in the case's folders beyond what a run without a kill leaves."""
        usual = {path.relative_to(known) for path in known.rglob("*")}
        found = [path for path in self.out.rglob("*") if path.relative_to(self.out) not in usual]
        found += list((self.case / "tmp").rglob("*"))
        found += [path for path in (self.case / "home").rglob("*") if is_partial(path.relative_to(self.case))]
        return sorted(path.relative_to(self.case).as_posix() for path in found)

    def warm_up(self, commands: Sequence[Command]) -> None:
        """Make the inputs in this process, which imports all, and run each command once without a kill."""
        self.inputs.mkdir()
        (self.inputs / "two.toml").write_text(SUITE, encoding="utf-8")
        self.fresh()
        os.environ.update(TMPDIR=str(self.case / "tmp"), MSN_DEPLOY_HOME=str(self.case / "home"))
        tempfile.tempdir = None
        net = str(self.inputs / "net.onnx")
        for line in (
            ["train", "cnn3_msn", *TRAINING.split(), "--out", str(self.inputs)],
            ["export", str(self.inputs / "cnn3_msn.safetensors"), "--out", net],
            ["calibrate", net, "--samples", "32", "--out", str(self.inputs / "net.int8.onnx")],
            *(command.line(self.inputs, self.out, 0) for command in commands),
        ):
            if code := msn_deploy([*line, "--quiet"]):
                raise SystemExit(f"{' '.join(line)}: exit {code}")
        for command in commands:
            self.fresh()
            began = time.monotonic()
            steps, code = self.run(command.line(self.inputs, self.out, 0), count=True)
            if code:
                raise SystemExit(f"{command.name}: exit {code}: {self.said()}")
            known = self.folder / f"known-{command.name}"
            shutil.copytree(self.out, known)
            self.base[command.name] = known, time.monotonic() - began, steps

    def run(
        self, line: list[str], *, after_s: float | None = None, at_step: int | None = None, count: bool = False
    ) -> tuple[int, int]:
        """Run a command line in a process group of its own and wait for it.

        Args:
            line: The command line.
            after_s: When the group is killed.
            at_step: Before which of its file operations it kills itself.
            count: Whether the file operations are counted.

        Returns:
            The number of file operations, 0 if they are not counted, and the exit code, negative for a signal.
        """
        told, tell = os.pipe()
        child = self._start(line, lambda: _hook(str(self.case), at_step, tell if count else None))
        os.close(tell)
        if after_s is not None:
            select.select([told], [], [], after_s)  # at its end there is nothing more to read
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        steps = 0
        while said := os.read(told, 65536):  # ends when the process does
            steps += len(said)
        os.close(told)
        return steps, _ended(child)

    def run_both(self, lines: Sequence[list[str]], *, meet: bool) -> list[int]:
        """Run two command lines at once and return their exit codes. meet: before their first rename."""
        ends = [os.pipe(), os.pipe()]

        def ready(at: int) -> Callable[[], None]:
            mine, other = ends[at], ends[1 - at]
            return lambda: _meet(str(self.out), mine[1], other[0]) if meet else None

        children = [self._start(line, ready(at)) for at, line in enumerate(lines)]
        codes = [_ended(child) for child in children]
        for end in (*ends[0], *ends[1]):
            os.close(end)
        return codes

    def said(self) -> str:
        """Return the last lines that a command wrote to stderr."""
        return (self.case / "said").read_text(encoding="utf-8", errors="replace")[-600:]

    def _start(self, line: list[str], prepare: Callable[[], object]) -> int:
        child = os.fork()
        if child:
            with suppress(OSError):  # it has done so itself, or has ended
                os.setpgid(child, child)
            return child
        code = 70
        try:
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            said = os.open(self.case / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(quiet, 1)
            os.dup2(said, 2)
            os.environ.update(TMPDIR=str(self.case / "tmp"), MSN_DEPLOY_HOME=str(self.case / "home"))
            tempfile.tempdir = None
            prepare()
            code = msn_deploy(line)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _hook(watch: str, at_step: int | None, tell: int | None) -> None:
    """Count the file operations below a folder (a byte into `tell` each), or die before one of them."""
    if at_step is None and tell is None:
        return
    steps = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event not in STEP_EVENTS or not str(args[0]).startswith(watch):
            return
        if event == "open" and not (str(args[1] or "r")[0] in "wxa" or (args[2] or 0) & os.O_CREAT):
            return
        if steps == at_step:
            os.killpg(0, signal.SIGKILL)
        steps += 1
        if tell is not None:
            os.write(tell, b".")

    sys.addaudithook(hook)


def _meet(watch: str, mine: int, other: int) -> None:
    """Wait before the first rename below a folder until the other process is there, too."""
    met = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal met
        if event == "os.rename" and not met and str(args[0]).startswith(watch):
            met = True
            os.write(mine, b".")
            select.select([other], [], [], MEETING_S)

    sys.addaudithook(hook)


def broken_files(folder: Path) -> list[str]:
    """Return the files that are not whole by themselves, or that their sidecar doesn't fit."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or is_partial(name):
            continue
        try:
            _read_whole(path)
            if sidecar_of(path).is_file() and read_sidecar(path).sha256 != sha256_of(path):
                found.append(f"{name}: the sidecar of another file")
        except Exception as cause:  # whatever a parser raises
            found.append(f"{name}: {type(cause).__name__}: {cause}"[:200])
    return found


def _read_whole(path: Path) -> None:
    """Read a file to its end by what its format says. Raises what the parser raises."""
    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jsonl":
        assert [json.loads(line) for line in data.splitlines()], "empty"
        assert data.endswith(b"\n"), "cut off"
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as tensors:
            assert list(tensors.keys()), "no tensors"
    elif path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load_from_string(data))
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>"), "cut off"
    elif path.suffix == ".xml":
        ElementTree.fromstring(data)
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                assert len(stream.read()) == member.size, "cut off"
        assert data.endswith(bytes(1024)), "cut off"  # a tar file's end
    else:
        assert data, "empty"


def verify_code(folder: Path) -> int:
    """Return what `verify` exits with; a folder without any artifact is none."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return msn_deploy(["verify", str(folder), "--no-data", "--quiet"])


def one_kill(place: Place, command: Command, number: int, seed: int) -> dict[str, Any]:
    """Kill a command once, look at what is there, run it again, and look once more."""
    draw = random.Random(f"{seed} {command.name} {number}")
    known, seconds, steps = place.base[command.name]
    place.fresh(known if number // 2 % 2 else None)
    line = command.line(place.inputs, place.out, number // 2 % 2)  # over old files: with other options
    if by_step := number % 2:
        point: float = draw.randrange(steps)
        _, code = place.run(line, at_step=int(point))
    else:
        point = round(draw.uniform(0, seconds), 4)
        _, code = place.run(line, after_s=point)
    row: dict[str, Any] = {"command": command.name, "number": number, "by": "step" if by_step else "time"}
    row |= {"point": point, "over_old": bool(number // 2 % 2), "killed": code == -signal.SIGKILL}
    row["broken"] = broken_files(place.out)
    with suppress(InputError):  # nothing there yet
        row["verdicts"] = dict(Counter(each.verdict for each in verify_folder(place.out)))
    partial = [path for name in ("out", "tmp") for path in (place.case / name).rglob("*")]
    row["partial"] = sum(is_partial(path.relative_to(place.case)) for path in partial)
    if command.name == "train" and (place.out / "cnn3_msn.state.safetensors").is_file() and draw.random() < 0.5:
        line, row["resumed"] = ["--resume" if word == "--overwrite" else word for word in line], True
    began = time.monotonic()
    _, row["rerun"] = place.run(line)
    place.base[command.name] = known, time.monotonic() - began, steps  # the machine may be busier or idler than before
    if row["rerun"]:
        row["said"] = place.said()
    row["verify"] = verify_code(place.out)
    row["left"] = place.left(known)
    row["broken_after"] = broken_files(place.out)
    return row


def one_pair(place: Place, command: Command, number: int) -> dict[str, Any]:
    """Let two writers write the same files at once, and look for mixtures."""
    place.fresh(place.base[command.name][0] if number // 2 % 2 else None)
    lines = [command.line(place.inputs, place.out, way) for way in (0, 1)]
    codes = place.run_both(lines if number % 4 < 2 else lines[::-1], meet=bool(number % 2))
    row: dict[str, Any] = {"command": command.name, "number": number, "met": bool(number % 2), "codes": codes}
    if any(codes):
        row["said"] = place.said()
    return row | {
        "mixed": broken_files(place.out),
        "verify": verify_code(place.out),
        "left": place.left(place.base[command.name][0]),
    }


def totals(result: dict[str, Any]) -> dict[str, Any]:
    """Count what the rows say."""
    kills, pairs = result["kills"], result["pairs"]
    return {
        "kills": sum(row["killed"] for row in kills),
        "runs that had finished before": sum(not row["killed"] for row in kills),
        "files damaged at the kill": sum(len(row["broken"]) for row in kills),
        "unfinished files and folders at the kill": sum(row["partial"] for row in kills),
        "files damaged after the rerun": sum(len(row["broken_after"]) for row in kills),
        "reruns that failed": sum(row["rerun"] != 0 for row in kills),
        "verify that failed after the rerun": sum(row["verify"] != 0 for row in kills),
        "left after the rerun": sum(len(row["left"]) for row in kills),
        "resumed": sum(row.get("resumed", False) for row in kills),
        "pairs": len(pairs),
        "pairs of which one was refused": sum(2 in row["codes"] for row in pairs),
        "pairs of which one failed otherwise": sum(bool({*row["codes"]} - {0, 2}) for row in pairs),
        "mixtures": sum(len(row["mixed"]) for row in pairs),
        "verify that failed after a pair": sum(row["verify"] != 0 for row in pairs),
        "left after a pair": sum(len(row["left"]) for row in pairs),
    }


@contextmanager
def made_up_clock() -> Iterator[None]:
    """Let every query take about 1 ms."""
    draw, now = random.Random(0), 0

    def clock() -> int:
        nonlocal now
        now += draw.randrange(900_000, 1_100_000)
        return now

    before = measure.__kwdefaults__["clock"]
    measure.__kwdefaults__["clock"] = clock
    try:
        yield
    finally:
        measure.__kwdefaults__["clock"] = before


def main() -> int:
    """Return 0 if nothing was damaged, mixed or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=304, help="over all commands")
    parser.add_argument("--pairs", type=int, default=200, help="over all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=[command.name for command in COMMANDS])
    parser.add_argument("--out", type=Path, default=RESULTS / machine_name(read_environment()) / "kills.json")
    options = parser.parse_args()
    commands = [command for command in COMMANDS if not options.only or command.name in options.only]
    result: dict[str, Any] = {"schema": SCHEMA, "seed": options.seed, "kills": [], "pairs": []}
    if options.out.is_file():
        result = json.loads(options.out.read_text(encoding="utf-8"))
        if result["seed"] != options.seed:
            raise SystemExit(f"{options.out} has the seed {result['seed']}; give that, or another --out.")

    def keep(kind: str, row: dict[str, Any]) -> None:
        result[kind].append(row)
        result["totals"] = totals(result)
        write_json(options.out, result)
        bad = {key: row[key] for key in ("broken", "broken_after", "mixed", "left", "rerun", "verify") if row.get(key)}
        print(f"{row['command']} {kind} {row['number']}: {bad or 'fine'}", flush=True)

    with tempfile.TemporaryDirectory(prefix="kills-") as folder, made_up_clock():
        place = Place(Path(folder).resolve())
        place.warm_up(commands)
        for kind, most in (("kills", options.kills), ("pairs", options.pairs)) * max(options.kills, options.pairs):
            for command in commands:  # one of each in turn, so that whatever is there already is of all
                done = [row for row in result[kind] if row["command"] == command.name]
                if sum(row.get("killed", True) for row in done) >= most // len(commands):
                    continue
                if kind == "kills":
                    keep(kind, one_kill(place, command, len(done), options.seed))
                else:
                    keep(kind, one_pair(place, command, len(done)))
    found = totals(result)
    print("\n".join(f"{name}: {count}" for name, count in found.items()))
    return int(any(found[name] for name in BAD))


BAD = (
    "files damaged at the kill",
    "files damaged after the rerun",
    "reruns that failed",
    "verify that failed after the rerun",
    "left after the rerun",
    "pairs of which one failed otherwise",
    "mixtures",
    "left after a pair",
)

if __name__ == "__main__":
    sys.exit(main())
