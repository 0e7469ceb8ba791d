"""The process that onnxsim runs in; started as a file by simplify.py, and it knows nothing of msn_deploy.

Arguments: a folder, and the folders to import from. Once it is ready it waits for a line with the most memory in bytes
and the most seconds; without one, its parent is gone. Then it reads before.onnx in the folder and leaves after.onnx
there, or in `reason` one line that says what failed; exit code 3 means that onnxsim could not be imported.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any

_MISSING = 3
_MOST_SECONDS_OF_IMPORTS = 120


def main(folder: str, *paths: str) -> int:
    """Simplify folder/before.onnx, inside the limits."""
    _bound(resource.RLIMIT_CORE, 0)
    os.chdir(folder)
    sys.path[:] = paths
    for heavy in ("torch", "sympy"):  # onnxsim takes them along where it finds them, and then starts in 4 s, not in 1
        sys.modules[heavy] = None  # type: ignore[assignment]
    signal.alarm(_MOST_SECONDS_OF_IMPORTS)  # ends this process even if nobody is left to kill it
    try:
        import onnx
        import onnxsim
    except ImportError as cause:
        return _say(str(cause), _MISSING)
    signal.alarm(0)
    line = sys.stdin.readline().split()
    if len(line) != 2:
        return 1
    memory, seconds = map(int, line)
    signal.alarm(seconds)
    _bound(resource.RLIMIT_AS, memory)
    try:
        model: Any = onnx.load("before.onnx", load_external_data=False)
        simplified, _ = onnxsim.simplify(model)
        onnx.save(simplified, "after.partial")
    except Exception as cause:  # onnxsim raises RuntimeError, ValueError and its own C++ errors alike
        return _say(f"{type(cause).__name__}: {cause}", 1)
    os.replace("after.partial", "after.onnx")
    return 0


def _bound(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _say(reason: str, code: int) -> int:
    with open("reason", "w", encoding="utf-8") as stream:
        stream.write(" ".join(reason.split())[:200])
    return code


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    os._exit(code)  # what onnxsim's libraries do at a regular end has no say in the result
