"""Thousands of inputs, each a function of seed and number: run on all cores, resumed where it was stopped, counted."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shlex
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz.child import run
from fuzz.judge import FAULTS, HANG_S, faults_of, snapshot
from fuzz.kinds import KINDS, is_slow, prepare
from msn_deploy.cli.app import COMMANDS, main

_AGAIN_S = 3 * HANG_S


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one input."""

    index: int
    kind: str
    line: str
    changed: str
    code: int
    seconds: float
    peak_mib: int
    faults: list[tuple[str, str]]


_WARM = (
    "eval in/m.onnx --samples 16",
    "eval in/c.safetensors --samples 16",
    "verify in",
    "calibrate in/m.onnx --data digits --samples 16 --method minmax --out out/q.onnx",
    "infer in/m.onnx in/digit.png",
    "bench in/bench.json --against in/bench.json --html out/r.html",
    "export in/m.onnx --no-simplify --out out/x.onnx",
    "export in/c.safetensors --no-simplify --out out/x.onnx",
    "train in/r.toml --epochs 1 --samples 16 --out out",
)


def warm_up(seeds: Path, *, quick: bool) -> None:
    """Import, by running commands here, what forked processes would each import for themselves."""
    gc.disable()  # it would look at millions of objects that live to the end
    with contextlib.suppress(ImportError):
        importlib.import_module("tqdm").tqdm.monitor_interval = 0  # onnxscript's bars start a thread that stays
    before, here = dict(os.environ), os.getcwd()
    for name in COMMANDS:
        importlib.import_module(f"msn_deploy.cli.{name.replace('-', '_')}")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        for line in _WARM:
            if quick and is_slow(line):
                continue
            place = Path(tempfile.mkdtemp(dir=folder))
            for part in ("run", "texts"):
                shutil.copytree(seeds / part, place / "in", dirs_exist_ok=True)
            os.environ["MSN_DEPLOY_HOME"] = str(place / "home")
            os.chdir(place)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                code = main(shlex.split(line))
            if code:
                raise RuntimeError(f"exit code {code} of a valid input: {line}")
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)
    gc.collect()  # sessions, whose threads end with them
    gc.freeze()
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    if len(threads) > 1:
        raise RuntimeError(f"a forked process would have one of these threads: {threads}")


def one(index: int, seed: int, seeds: Path, *, quick: bool = False, keep: Path | None = None) -> Result:
    """Make, run and judge one input. keep: a folder that gets what belongs to it if something is wrong."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
        folder = Path(parent) / "input"
        given = prepare(index, seed, seeds, folder, quick=quick)
        if keep is not None:
            shutil.copytree(folder, Path(parent) / "given", symlinks=True, copy_function=_copied)
        before = snapshot(folder)
        done = run(given.args, folder, limit_s=HANG_S)
        if done.timed_out:  # or was the machine busy? Alone, with more time
            shutil.rmtree(folder)
            given = prepare(index, seed, seeds, folder, quick=quick)
            before = snapshot(folder)
            done = run(given.args, folder, limit_s=_AGAIN_S)
        found = faults_of(done, given, folder, before)
        line = shlex.join(given.args)
        if found and keep is not None:
            place = keep / f"{seed}-{index}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(Path(parent) / "given", place, symlinks=True, copy_function=_copied)
            words = os.fsencode(f"cd a/b/c && msn-deploy {line}\n")
            (place / "again.sh").write_bytes(words)
            (place / "err.txt").write_bytes(done.err)
            (place / "out.txt").write_bytes(done.out)
    return Result(
        index=index,
        kind=given.kind,
        line=_printable(line, 300),
        changed=_printable(given.changed, 100),
        code=done.code,
        seconds=round(done.seconds, 2),
        peak_mib=done.peak_bytes >> 20,
        faults=[(what, _printable(of, 500)) for what, of in found],
    )


def _copied(source: str, target: str) -> None:
    """Copy a plain file, without the content that it has not; leave pipes and the like out."""
    if os.path.isfile(source):
        if os.path.getsize(source) > 64 << 20:
            with open(source, "rb") as stream:
                Path(target).write_bytes(stream.read(1 << 20))
            os.truncate(target, os.path.getsize(source))
        else:
            shutil.copy2(source, target, follow_symlinks=False)


def _printable(text: str, most: int) -> str:
    return text.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")[:most]


def results_of(
    seed: int,
    indices: Sequence[int],
    seeds: Path,
    folder: Path,
    *,
    jobs: int,
    quick: bool = False,
    keep: Path | None = None,
) -> list[Result]:
    """Run inputs on `jobs` processes; results in `folder` are taken as they are, so that a stopped run is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {result.index: result for result in _read(folder)}
    waiting = [index for index in indices if index not in done]
    workers = []
    for at in range(jobs):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                with (folder / f"{at}.jsonl").open("a", encoding="utf-8") as stream:
                    for index in waiting[at::jobs]:
                        stream.write(json.dumps(asdict(one(index, seed, seeds, quick=quick, keep=keep))) + "\n")
                        stream.flush()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    if any(codes):
        raise RuntimeError(f"the harness itself failed: exit codes {codes}; see what it printed above")
    found = {result.index: result for result in _read(folder)}
    return [found[index] for index in indices]


def _read(folder: Path) -> Iterable[Result]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            yield Result(**{**value, "faults": [tuple(each) for each in value["faults"]]})


def counted(seed: int, results: Sequence[Result]) -> dict[str, Any]:
    """Return the counts of one seed, as they stand in fuzz.json."""
    kinds = {
        name: dict(sorted(Counter(str(result.code) for result in results if result.kind == name).items()))
        for name in KINDS
    }
    faults = Counter(what for result in results for what in {what for what, _ in result.faults})
    return {
        "seed": seed,
        "inputs": len(results),
        "exit_codes": dict(sorted(Counter(str(result.code) for result in results).items())),
        "exit_codes_by_kind": {name: codes for name, codes in kinds.items() if codes},
        "faults": {what: faults[what] for what in FAULTS},
        "slowest_s": max(result.seconds for result in results),
        "largest_mib": max(result.peak_mib for result in results),
        "found": [asdict(result) for result in results if result.faults],
    }
