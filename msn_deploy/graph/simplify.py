"""onnxsim: constants folded, dead nodes gone; in a process of its own, which may crash, hang or eat memory."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import ModelProto, ValueInfoProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import missing
from msn_deploy.model.checks import check_valid
from msn_deploy.model.identity import structural_hash

if TYPE_CHECKING:
    from msn_deploy.graph.weights import Weights

TIMEOUT_S = 120.0  # networks of this project's size take one to three
_LOG = logging.getLogger(__name__)
_WORKER = Path(__file__).with_name("simplify_worker.py")
_MEMORY, _MEMORY_PER_BYTE = 4 << 30, 8  # bytes of address space, and more of them per byte of the model
_WORTH_A_CHANGE = 0.01  # of the file's bytes, saved by keeping equal weights once
_EXIT_MISSING = 3
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Simplified:
    """What came of it: onnxsim's graph, or the very graph that was given.

    kept_because: why the given one was kept; None if onnxsim's was taken, or was the same (`unchanged`) to the bit.
    """

    model: ModelProto
    kept_because: str | None = None
    unchanged: bool = False


Worker = subprocess.Popen[bytes]


class _UnusableError(Exception):
    """Why onnxsim's result is not taken."""


def simplify(model: ModelProto, *, timeout_s: float = TIMEOUT_S) -> Simplified:
    """Return the simplified graph, or (with a line in the log) the graph itself where onnxsim fails on it or harms it.

    The result is taken only if it is valid and all inputs and outputs keep name, type and shape. The caller compares
    outputs before it trusts it: onnxsim has changed them before (its issue 1284). Raises MissingDependency.
    """
    with simplifying(timeout_s=timeout_s) as start:
        return start(model)()


Finish = Callable[[], Simplified]


@contextlib.contextmanager
def simplifying(*, timeout_s: float = TIMEOUT_S) -> Iterator[Callable[[ModelProto], Finish]]:
    """Start the process at once, whose imports take longer than its work, and yield what hands it the graph.

    That returns what waits for the result, so that `simplify` runs beside what the block does. Whatever ends the block,
    be it Ctrl-C, ends the worker and all that it started.
    """
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as name:
        folder = Path(name)
        worker = _start_worker(folder)

        def start(model: ModelProto) -> Finish:
            from msn_deploy.graph.weights import without_weights  # late: a device has no onnx_ir

            bare, weights = without_weights(model)  # onnxsim would read, copy and write them, and change none
            _hand_over(bare, worker, folder, timeout_s)
            return lambda: _finish(model, bare, weights, worker, folder, timeout_s)

        try:
            yield start
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # ended, and nothing else of its group left
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()


def _start_worker(folder: Path) -> Worker:
    here = os.getcwd()
    paths = [path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) != here]
    # -I: no module of the working directory or of PYTHONSTARTUP and the like; what this process imports from is passed.
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    return subprocess.Popen(
        [sys.executable, "-I", str(_WORKER), str(folder), *paths],
        cwd=folder,
        env={**kept, **_ONE_THREAD, "HOME": str(folder), "TMPDIR": str(folder)},
        start_new_session=True,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _hand_over(model: ModelProto, worker: Worker, folder: Path, timeout_s: float) -> None:
    content = model.SerializeToString()
    (folder / "before.onnx").write_bytes(content)
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it could not import onnxsim, and `_result` reads why
        worker.stdin.write(b"%d %d\n" % (_MEMORY + _MEMORY_PER_BYTE * len(content), math.ceil(timeout_s) + 1))


def _finish(
    model: ModelProto, bare: ModelProto, weights: Weights, worker: Worker, folder: Path, timeout_s: float
) -> Simplified:
    try:
        simplified = _result(worker, folder, timeout_s)
        try:
            check_valid(simplified, source="its graph")
        except InputError as cause:
            raise _UnusableError(f"onnxsim failed ({cause})") from cause
        changed = _first_change(bare, simplified)
        if changed is not None:
            raise _UnusableError(f"onnxsim changed {changed}")
    except _UnusableError as cause:
        _LOG.warning("kept the unsimplified graph: %s", cause)
        return Simplified(model, kept_because=str(cause))
    alike = structural_hash(simplified, weights=True) == structural_hash(bare, weights=True)
    merged = _constants_bytes(bare) - _constants_bytes(simplified)
    if alike and merged < _WORTH_A_CHANGE * model.ByteSize():
        return Simplified(model, unchanged=True)
    from msn_deploy.graph.weights import with_weights

    return Simplified(with_weights(simplified, weights))


def _constants_bytes(model: ModelProto) -> int:
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def _result(worker: Worker, folder: Path, timeout_s: float) -> ModelProto:
    try:
        code = worker.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise _UnusableError(f"onnxsim took more than {timeout_s:g} s") from None
    reason = folder / "reason"
    said = reason.read_text(encoding="utf-8") if reason.is_file() else ""
    if code == _EXIT_MISSING and said:
        raise missing("onnxsim", step="export", cause=said)
    if code != 0:
        raise _UnusableError(f"onnxsim failed ({said or _death(code)})")
    try:
        return onnx.load(folder / "after.onnx", load_external_data=False)
    except Exception as cause:  # no such file, or protobuf's DecodeError
        raise _UnusableError(f"onnxsim failed (its file cannot be read: {type(cause).__name__})") from cause


def _death(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _first_change(before: ModelProto, after: ModelProto) -> str | None:
    """Name the first input or output whose name, type or shape is another one, such as "input x"; None if all stay."""
    for kind in ("input", "output"):
        old, new = _signature(before, kind), _signature(after, kind)
        if old != new:
            index = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
            if index is None:
                return f"the number of {kind}s from {len(old)} to {len(new)}"
            return f"the {kind} {old[index][0]}{_shown(old[index])} to {new[index][0]}{_shown(new[index])}"
    return None


_Entry = tuple[str, int, tuple[int | str, ...] | None]


def _signature(model: ModelProto, kind: str) -> list[_Entry]:
    """Name, element type and sizes (a name or "?" where they are open; None: not even their number is told)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    values: list[ValueInfoProto] = [each for each in getattr(model.graph, kind) if each.name not in weights]
    found: list[_Entry] = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
        found.append((value.name, tensor.elem_type, sizes if tensor.HasField("shape") else None))
    return found


def _shown(entry: _Entry) -> str:
    _, kind, sizes = entry
    shape = "?" if sizes is None else "x".join(map(str, sizes))
    return f" ({onnx.TensorProto.DataType.Name(kind).lower()} {shape})"
