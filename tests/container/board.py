"""Runs a command next to the files of a fake Jetson: `board.py NAME FOLDER COMMAND...`; for run.sh.

NAME is one of BY_NAME; NAME-bare leaves out what `docker run -v` would mount. FOLDER/layer is laid over the image, as
what JetPack's base brings, and NVIDIA's runtime and `docker run -v` mount. FOLDER/proc is mounted over files of /proc,
FOLDER/copies holds the copies of the device tree. While the command runs, the power sensor shows IDLE_W, and BUSY_W as
long as a process with `--energy` among its words wants to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from boards import BOARDS
from doctor_machines import PACKAGES
from fake_sysfs import FakeJetson

from msn_deploy.machine.containers import COPIES, MOUNTED

BY_NAME = {"orin-nano": "Orin Nano, JetPack 6.2", "agx-orin": "AGX Orin, JetPack 6.0"}
IDLE_W, BUSY_W = 4.0, 10.0
UPDATE_MS = 100
_STEP_S = 0.005
_BINDABLE = ("meminfo", "loadavg", "sys/kernel/osrelease", "cpuinfo")
# What every container has, by device number; the board's own all get that of /dev/null: no driver is behind them.
_PLAIN = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
# /proc/cpuinfo of an Orin with Linux 5.15, of which ONNX Runtime asks which cores these are.
_CORE = """processor\t: {core}
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""
# Names its release, as NVIDIA's does, and writes the file that it is asked for.
_TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help"; exit; fi
for each in "$@"; do case $each in --saveEngine=*) echo "no engine: $*" >"${{each#*=}}" ;; esac; done
"""


def write(name: str, folder: Path, *, mounted: bool) -> FakeJetson:
    """Write the files of a board, as a container on it sees them; mounted: as `doctor` says to start it."""
    shutil.rmtree(folder, ignore_errors=True)
    layer, proc, copies = (folder / each for each in ("layer", "proc", "copies"))
    (board,) = (each for each in BOARDS if each.title == BY_NAME[name])
    running = board.build(layer, inside=True)
    assert isinstance(running.board, FakeJetson)
    for device, (gid, mode) in board.machine.nodes.items():
        (layer / device).unlink()
        _node(layer / device, os.makedev(1, 3), mode, gid)
    for plain, number in _PLAIN.items():
        _node(layer / "dev" / plain, os.makedev(*number), 0o666, 0)
    (layer / "dev/shm").mkdir()
    (layer / "proc/self/mountinfo").unlink()  # the kernel tells
    shutil.move(layer / "proc", proc)
    (layer / "tmp").rename(copies)
    assert sorted(path.name for path in copies.iterdir()) == sorted(f"nv_jetson_{each}" for each in COPIES)
    (proc / "cpuinfo").write_text("".join(_CORE.format(core=core) for core in range(3)))
    left = [str(path.relative_to(proc)) for path in proc.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(_BINDABLE), left
    shutil.rmtree(layer / "etc/msn-deploy")  # the image has its own
    cores = layer / "sys/devices/system/cpu"
    for said, which in (("possible", "0-3"), ("present", "0-3"), ("online", "0-2")):
        (cores / said).write_text(f"{which}\n")
    (layer / "sys/kernel/debug").chmod(0o700)
    for told in layer.glob("sys/bus/i2c/devices/*/hwmon/*/update_interval"):
        told.write_text(f"{UPDATE_MS}\n")
    for module, version in board.machine.installed.items():
        if module not in PACKAGES:  # those are in the image
            info = layer / f"usr/lib/python3/dist-packages/{module}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    major, minor, patch = (int(part) for part in board.machine.installed["tensorrt"].split("."))
    trtexec = layer / "usr/src/tensorrt/bin/trtexec"
    trtexec.parent.mkdir(parents=True)
    number = f"{major}{minor:02}{patch:02}" if major >= 10 else f"{major}{minor}{patch:02}"
    trtexec.write_text(_TRTEXEC.format(number=number))
    trtexec.chmod(0o755)
    if not mounted:
        for each in MOUNTED:
            path = layer / each.lstrip("/")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in copies.iterdir():
            path.unlink()
    return running.board


def draw(board: FakeJetson, child: subprocess.Popen[bytes]) -> int:
    """Show the power of a command until it ends, each time the mean of an update; return its exit code."""
    shown = due = time.monotonic()
    busy: list[bool] = []
    measured: Path | None = None
    while child.poll() is None:
        now = time.monotonic()
        if now - shown >= 1 and not _runs(measured):
            measured, shown = _measured(child.pid), now
        busy.append(_runs(measured) == "R")
        if now >= due:
            board.set_watts(IDLE_W + (BUSY_W - IDLE_W) * sum(busy) / len(busy))
            busy.clear()
            due = now + UPDATE_MS / 1e3
        time.sleep(_STEP_S)
    return child.returncode


def _node(path: Path, number: int, mode: int, gid: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o020000, number)
    os.chown(path, 0, gid)
    path.chmod(mode)


def _measured(child: int) -> Path | None:
    """Return the folder in /proc of the command that measures energy, below a child."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            emulated = b"qemu" in words[0] or b"python" in words[0]
            if emulated and b"--energy" in words and child in _parents(int(process.name)):
                return process
        except (OSError, ValueError):  # it has ended
            continue
    return None


def _parents(number: int) -> Iterator[int]:
    while number > 1:
        number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
        yield number


def _runs(process: Path | None) -> str:
    """Return the state of a process: "R" while it runs or wants to; "" where it is not there."""
    try:
        return "" if process is None else (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


if __name__ == "__main__":
    asked = sys.argv[1].removesuffix("-bare")
    started = write(asked, Path(sys.argv[2]), mounted=asked == sys.argv[1])
    sys.exit(draw(started, subprocess.Popen(sys.argv[3:])))
