"""Processes that simplify, forked from one in which onnxsim is loaded: a second of each of several hundred exports.

As a script, it is that one: each message on the socket whose number it is given is an order, the folder and the time of
one simplifier, with two open files: its stdin, and where its process id and then its exit code go.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_FILES = 2


class WarmSimplifiers:
    """Starts the process at the first order; close it in the end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, timeout_s: float) -> ForkedSimplifier:
        """Return a simplifier as `msn_deploy.graph.simplify` starts one."""
        if self._process is None:
            self._socket, theirs = socket.socketpair()
            command = [sys.executable, __file__, str(theirs.fileno())]
            env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
            theirs.close()
        (stdin, ours), (told, tell) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [json.dumps([str(folder), timeout_s]).encode()], [stdin, tell])
        os.close(stdin)
        os.close(tell)
        return ForkedSimplifier(ours, told)

    def close(self) -> None:
        if self._process is not None:
            self._socket.close()
            self._process.wait()


class ForkedSimplifier:
    """What of `subprocess.Popen` is used of it."""

    def __init__(self, stdin: int, told: int) -> None:
        self.stdin = open(stdin, "wb", buffering=0)  # noqa: SIM115 - both are closed on exit
        self._told = open(told, "rb", buffering=0)  # noqa: SIM115
        self.pid = int(self._told.readline())
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("the simplifier", timeout or 0.0)
            self._code = int(self._told.readline())
        return self._code

    def __enter__(self) -> ForkedSimplifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, cause: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stdin.close()
        self.wait()
        self._told.close()


def _serve(orders: socket.socket) -> None:
    sys.modules["torch"] = sys.modules["sympy"] = None  # type: ignore[assignment]  # as `work` has it
    importlib.import_module("onnxsim")
    simplify = importlib.import_module("msn_deploy.graph.simplify")
    while True:
        order, files, *_ = socket.recv_fds(orders, 1 << 16, _FILES)
        if not order:
            return
        if os.fork() == 0:
            orders.close()
            _watch(simplify, *json.loads(order), *files)
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(simplify: Any, folder: str, timeout_s: float, stdin: int, tell: int) -> None:
    """Fork the simplifier, wait for its end, and tell both."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.write(tell, f"{os.getpid()}\n".encode())
        os.close(tell)
        os.chdir(folder)
        os.environ |= dict.fromkeys(("HOME", "TMPDIR"), folder)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for file, number in ((stdin, 0), (nowhere, 1), (nowhere, 2)):
            os.dup2(file, number)
        simplify.work(timeout_s)
    os.close(stdin)
    _, status = os.waitpid(pid, 0)
    os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
