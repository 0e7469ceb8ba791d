"""One command line in a forked process, with bounds on memory and time, and with an eye on what it opens and starts.

What a command may not do (write outside of the folder of its input, start a program, connect) is written down and
refused, so that an input that gets that far does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.kinds import CWD
from msn_deploy.cli.app import main

MEMORY = 3 << 30
"""Bytes of address space that a command gets on top of what its imports take."""
_FILE = 2 << 30
_OF_LINKS = {"os.rename", "os.remove", "os.symlink", "os.link"}  # these touch a link itself, not where it leads
_WRITES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.truncate",
    "os.utime",
}
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.startfile"}
_CONNECTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command line did.

    code: its exit code, negative for a signal that ended it. peak_bytes: of memory that was in use,
    imports too. refused:
    what it tried and may not: (what, of what).
    """

    code: int
    timed_out: bool
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    out: bytes
    err: bytes
    refused: list[tuple[str, str]] = field(default_factory=list)


def run(args: list[str], folder: Path, *, limit_s: float) -> Run:
    """Run a command line in the CWD of an input's folder."""
    outputs = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 - three of them, closed below
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            _be_child(args, folder, [each.fileno() for each in outputs])
        finally:
            os._exit(99)
    handle = os.pidfd_open(pid)
    with select.epoll() as waiting:
        waiting.register(handle, select.EPOLLIN)
        timed_out = not waiting.poll(limit_s)
    os.close(handle)
    if timed_out:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what it started and left
        os.killpg(pid, signal.SIGKILL)
    told = []
    for each in outputs:
        each.seek(0)
        told.append(each.read(4 << 20))
        each.close()
    return Run(
        code=os.waitstatus_to_exitcode(status),
        timed_out=timed_out,
        seconds=seconds,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_bytes=used.ru_maxrss << 10,
        out=told[0],
        err=told[1],
        refused=[tuple(json.loads(line)) for line in told[2].splitlines()],
    )


def _be_child(args: list[str], folder: Path, outputs: list[int]) -> None:
    os.setsid()
    place = folder / CWD
    os.chdir(place)
    home = str(place / "home")
    os.environ.update(
        HOME=home, MSN_DEPLOY_HOME=home, XDG_CACHE_HOME=home, XDG_DATA_HOME=home, TMPDIR=str(place / "tmp")
    )
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for target, source in enumerate(outputs[:2], start=1):
        os.dup2(source, target)
    # As for most people: a file name that is not UTF-8 can't be written to stdout.
    sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    with open("/proc/self/statm") as stream:
        size = int(stream.read().split()[0]) * resource.getpagesize()
    for what, most in ((resource.RLIMIT_AS, size + MEMORY), (resource.RLIMIT_FSIZE, _FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    _watch(str(folder.resolve()), outputs[2])
    try:
        code: Any = main(args)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        code = 120
    os._exit(code if isinstance(code, int) else 1)


def _watch(root: str, report: int) -> None:
    """Write down and refuse what no command may do."""
    allowed = (root + os.sep, "/dev/null", "/dev/shm/", "/proc/self/")

    def refuse(what: str, of: object) -> None:
        text = of if isinstance(of, str) else os.fsdecode(of) if isinstance(of, bytes | os.PathLike) else repr(of)
        os.write(report, json.dumps([what, text[:300]]).encode() + b"\n")
        raise PermissionError(errno.EACCES, "refused by the harness")

    def outside(path: Any) -> bool:
        return not isinstance(path, int) and path is not None and not os.path.realpath(path).startswith(allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if mode is None else set(mode) & set("wax+")
            )
            if writes and outside(path):
                refuse("outside", path)
        elif event in _WRITES:
            for path in args[: 2 if event in ("os.rename", "os.link") else 1]:
                if outside(os.path.dirname(os.path.abspath(path)) if event in _OF_LINKS else path):
                    refuse("outside", path)
        elif event == "subprocess.Popen":
            words = [os.fsdecode(each) for each in args[1]] if isinstance(args[1], list | tuple) else [str(args[1])]
            if os.fsdecode(args[0]) != sys.executable or "pip" in words:
                refuse("pip" if "pip" in words else "started", " ".join(words)[:200])
        elif event in _STARTS:
            refuse("started", args[0])
        elif event in _CONNECTS:
            refuse("connected", args[-1])
        elif event == "ctypes.dlopen" and args[0] is not None and str(args[0]).startswith(root):
            refuse("loaded", args[0])

    sys.addaudithook(hook)
