"""What is wrong with what a command line did? Everything that the project promises of any input."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from fuzz.child import Run
from fuzz.kinds import CWD, Input
from msn_deploy.core.artifacts import parse_sidecar, sidecar_path

FAULTS = {
    "traceback": "an exception that nobody caught",
    "crash": "ended by a signal",
    "exit code": "an exit code outside of 0 to 4",
    "internal": "exit code 5: a fault of the project's own",
    "hang": "over 20 s",
    "memory": "above 3 GB, or stopped because it asked for more",
    "long": "a message of more than 600 characters or 3 lines",
    "control": "control characters in what is printed, or text that is not UTF-8",
    "silent": "an exit code other than 0 without a message",
    "half": "a file half written, a sidecar of another file, something temporary left",
    "changed": "an input changed",
    "outside": "a file written outside of the output folder",
    "started": "a program started",
    "connected": "a connection or a name look-up",
    "loaded": "a native library loaded",
}
HANG_S = 20.0
MOST_BYTES = 3 << 30
MOST_LINES, MOST_CHARACTERS = 3, 600
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TOO_LITTLE_MEMORY = re.compile("too little memory|does not fit into the memory|MemoryError")
Snapshot = dict[str, tuple[int, int, int, int]]


def snapshot(folder: Path) -> Snapshot:
    """Return what is below the CWD of an input, by path: type and mode, size, time of change, inode."""
    found: Snapshot = {}
    for base, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            info = os.lstat(path)
            size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
            time = 0 if stat.S_ISDIR(info.st_mode) else info.st_mtime_ns
            found[os.path.relpath(path, folder)] = (info.st_mode, size, time, info.st_ino)
    return found


def faults_of(run: Run, given: Input, folder: Path, before: Snapshot) -> list[tuple[str, str]]:
    """Return what is wrong, each with what was seen; a fault is one of FAULTS."""
    found = [(what, of) for what, of in run.refused if what in FAULTS]
    err = run.err.decode("utf-8", "surrogateescape")
    out = run.out.decode("utf-8", "surrogateescape")
    if run.timed_out or run.cpu_seconds > HANG_S:  # what takes longer alone, on a busy machine, does not hang
        found.append(("hang", f"{run.seconds:.1f} s, of these {run.cpu_seconds:.1f} s at work"))
    elif run.code < 0:
        found.append(("crash", f"signal {-run.code}; {err[-200:]}"))
    elif run.code == 5:
        found.append(("internal", err[-400:]))
    elif run.code not in range(5):
        found.append(("exit code", f"{run.code}; {err[-300:]}"))
    if "Traceback (most recent call last)" in err:
        found.append(("traceback", err[-600:]))
    if run.peak_bytes > MOST_BYTES or _TOO_LITTLE_MEMORY.search(err):
        found.append(("memory", f"{run.peak_bytes >> 20} MiB; {err[-200:]}"))
    found += _of_text(run, out, err)
    found += _of_files(given, folder, before)
    return list(dict(reversed(found)).items())


def _of_text(run: Run, out: str, err: str) -> list[tuple[str, str]]:
    found = []
    for text, where in ((out, "stdout"), (err, "stderr")):
        if (bad := _CONTROL.search(text)) or (bad := re.search("[\ud800-\udfff]", text)):
            found.append(("control", f"{where}: {text[max(0, bad.start() - 80) : bad.end() + 40]!r}"))
    parts = re.split(r"^msn-deploy: ", err, flags=re.M)
    message = parts[-1].rstrip("\n") if run.code in (1, 2, 3, 4, 5) and len(parts) > 1 else ""
    if run.code in (1, 2, 3, 4) and not message and not run.timed_out:
        found.append(("silent", f"{run.code}; {err[-200:]}"))
    longest = max([len(message), *(len(line) for line in err.splitlines())])
    if longest > MOST_CHARACTERS or message.count("\n") >= MOST_LINES:
        found.append(("long", f"{longest} characters, {message.count(chr(10)) + 1} lines: {message[:200]!r}"))
    return found


def _of_files(given: Input, folder: Path, before: Snapshot) -> list[tuple[str, str]]:
    found, after, place = [], snapshot(folder), f"{CWD}{os.sep}"
    asked = _asked_for(given, folder)
    for path, was in before.items():
        if not path.startswith((f"{place}out", f"{place}home", f"{place}tmp")) and after.get(path) != was:
            found.append(("changed", path))
    for path in after.keys() - before.keys():
        name = path.removeprefix(place)
        beside_input = re.match(r"in/[^/]*$", name) and _is_named_after_an_input(Path(name).name)
        if path.endswith(".partial"):
            found.append(("half", path))
        elif name.startswith("tmp/"):
            found.append(("half", f"left in TMPDIR: {path}"))
        elif not name.startswith(("out/", "home/")) and not beside_input and not _is_of(path, asked):
            found.append(("outside", path))
    changed = [path for path, now in after.items() if path.startswith(f"{place}out/") and before.get(path) != now]
    for path in changed:
        if (why := _torn(folder / path)) is not None:
            found.append(("half", f"{path}: {why}"))
    return found


def _asked_for(given: Input, folder: Path) -> list[str]:
    """Return the paths that a command line names, but not the name of a recipe."""
    outs = [value for option, value in zip(given.args, given.args[1:], strict=False) if option in ("--out", "-o")]
    values = [word.partition("=")[2] or word for word in given.args if not word.startswith("name=")]
    paths = [os.path.relpath(os.path.normpath(folder / CWD / value), folder) for value in values]
    return [
        path
        for value, path in zip(values, paths, strict=True)
        if (path != "." and not CWD.startswith(path)) or (path == CWD and value in outs)
    ]


def _is_of(path: str, asked: list[str]) -> bool:
    """Whether a path is one of those, is in it, on the way to it, or is its sidecar."""
    return any(
        path == each or path.startswith((f"{each}/", f"{each}.")) or each.startswith(f"{path}/") for each in asked
    )


def _is_named_after_an_input(name: str) -> bool:
    """Commands without `--out` write beside their input: NAME.int8.onnx, NAME.fp32.engine and what belongs to them."""
    return bool(re.search(r"\.(int8|fp16|fp32)\.|\.build\.sh", name, re.S))


def _torn(path: Path) -> str | None:
    """Return why a file that was written is not complete, or None."""
    if not path.is_file() or path.is_symlink():
        return None
    raw = path.read_bytes()
    try:
        if path.suffix == ".json":
            json.loads(raw)
        elif path.suffix == ".safetensors":
            size = int.from_bytes(raw[:8], "little")
            header: dict[str, Any] = json.loads(raw[8 : 8 + size])
            ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
            if 8 + size + max(ends, default=0) != len(raw):
                return "its tensors end elsewhere"
        elif path.suffix == ".png":
            from PIL import Image

            Image.open(io.BytesIO(raw)).load()
        side = sidecar_path(path)
        if side.is_file() and parse_sidecar(side, side.read_bytes()).sha256 != hashlib.sha256(raw).hexdigest():
            return "its sidecar is of another file"
    except Exception as cause:
        return f"{type(cause).__name__}: {cause}"[:200]
    return None
