"""Does any command leave the machine? Each is run under strace, outside of CI, with a fresh home folder.

    python benchmarks/offline.py [--out FILE]

Counted are connects and sends on internet sockets, loopback too, and look-ups of names, in every process and thread
that a command starts. Two more runs say what it looks like when something leaves: `bench` with ONNX Runtime's
telemetry on, and `train` on a data set that is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from msn_deploy.machine.environment import machine_name, read_environment

ROOT = Path(__file__).resolve().parents[1]
_RESULTS = ROOT / "benchmarks" / "results"
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""Of the environment: not CI, by which ONNX Runtime would leave its telemetry out, and nothing of the user's."""
_CALLS = "connect,sendto,sendmsg,sendmmsg"
_INTERNET = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg)\(.*sa_family=AF_INET6?\b")
_RESOLVER = re.compile(r"\bconnect\(.*sa_family=AF_UNIX.*(systemd/resolve|/dnsmasq)")
_TELEMETRY = "onnxruntime"  # in the names of the files in which it waits to be sent

# In this order, since each reads what those above wrote. {wheels} is a folder of wheels, empty.
LINES = (
    "--version",
    "--help",
    "bench --help",
    "targets",
    "doctor",
    "train cnn3_msn --epochs 1 --samples 64 --out run",
    "train cnn3_bn --epochs 1 --samples 64 --out run",
    "study cnn3_msn --norms bn,msn --epochs 1 --samples 640 --out study",
    "import-checkpoint Conv_a.t7 --out run/a.safetensors",
    "export run/cnn3_msn.safetensors --out run/msn.onnx",
    "export run/cnn3_bn.safetensors --no-simplify --out run/bn.onnx",
    "calibrate run/msn.onnx --samples 32 --out run/msn.int8.onnx",
    "build-engine run/msn.onnx --precision int8 --samples 32",
    "build-engine run/msn.onnx --precision fp16 --target orin-nano-8gb --out run/there.engine",
    "eval run/msn.onnx",
    "eval run/cnn3_msn.safetensors",
    "infer run/msn.onnx digit.png",
    "info run/msn.int8.onnx",
    "recipes",
    "datasets",
    "diff run/msn.int8.onnx run/msn.onnx --samples 8",
    "bench run/bn.onnx run/msn.onnx --seconds 1 --layers --json run/bench.json --html run/report.html",
    "bench run/cnn3_msn.safetensors --seconds 1",
    "suite smoke --seconds 0.5 --runs runs --out suite",
    "verify run",
    "bundle run --target orin-nano-8gb --no-wheels --out b.tar",
    "bundle run --target orin-nano-8gb --wheels wheels --out b.tar",
    "demo --epochs 1 --seconds 0.5 --out demo",
)
CONTROLS = {
    "bench run/bn.onnx --seconds 20": {"ORT_DISABLE_TELEMETRY": ""},
    "train cnn3_msn --data mnist --epochs 1 --samples 64 --out mnist": {},
}


def outgoing(words: Sequence[object], folder: Path, env: Mapping[str, str] | None = None) -> tuple[int, list[str], str]:
    """Run Python with these words under strace, in a folder with a home of its own.

    Returns its exit code, the system calls that leave the machine, and what it printed. Raises RuntimeError if strace
    may not trace here.
    """
    log, home = folder / "strace.txt", folder / "home"
    home.mkdir(exist_ok=True)
    tracing = ("strace", "-f", "--seccomp-bpf", "-qq", "-s", "200", "-e", f"trace={_CALLS}", "-o", str(log))
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    done = subprocess.run(
        [*tracing, sys.executable, *map(str, words)],
        env={**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if not log.is_file() or "ptrace" in done.stderr.splitlines()[:1]:
        raise RuntimeError(f"strace does not trace here: {done.stderr.strip()[:200]}")
    lines = log.read_text(errors="replace").splitlines()
    return done.returncode, [line for line in lines if _INTERNET.search(line) or _RESOLVER.search(line)], done.stderr


def left_by_telemetry(folder: Path) -> list[str]:
    """Return the files of ONNX Runtime's telemetry in the home of the commands that ran in a folder."""
    return sorted(path.name for path in (folder / "home").rglob("*") if _TELEMETRY in path.name)


def _row(line: str, folder: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    began = time.monotonic()
    code, calls, err = outgoing(["-m", "msn_deploy", *shlex.split(line)], folder, env)
    row = {
        "line": line,
        "exit_code": code,
        "calls": len(calls),
        "first": [_told(call) for call in calls[:3]],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(f"{code} {len(calls):4} {line}", flush=True)
    if code not in (0, 3, 4):
        print("  " + err.strip()[-300:])
    return row


def _told(call: str) -> str:
    """Return what a call is, without the address of whoever runs this."""
    found = re.search(r"(\w+)\(.*sa_family=(\w+)(?:.*port=htons\((\d+)\))?", call)
    return " ".join(filter(None, found.groups())) if found else call.partition("(")[0]


def main() -> int:
    """Run all commands; return 1 if one of them left the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_RESULTS / machine_name(read_environment()) / "offline.json")
    args = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not installed: apt-get install strace", file=sys.stderr)
        return 3
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from fuzz.seeds import make_texts, make_weights

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_texts(folder)
        make_weights(folder)
        (folder / "wheels").mkdir()
        rows = [_row(line, folder) for line in LINES]
        left = left_by_telemetry(folder)
        controls = [_row(line, folder, env) for line, env in CONTROLS.items()]
    version = subprocess.run(["strace", "--version"], capture_output=True, text=True).stdout.split()[3]
    versions = {name: metadata.version(name) for name in ("onnxruntime", "onnxsim", "torch")}
    told = {
        "versions": {"strace": version, **versions},
        "left_by_telemetry": left,
        "commands": rows,
        "controls": controls,
    }
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(bool(left) or any(row["calls"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
