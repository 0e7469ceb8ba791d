"""onnxsim: constants folded, dead nodes gone; in a process of its own, which may crash, hang or eat memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import onnx
from onnx import ModelProto, ValueInfoProto

from msn_deploy.core.errors import InputError
from msn_deploy.core.optional import missing
from msn_deploy.core.partials import partial_folder
from msn_deploy.model.checks import check_valid
from msn_deploy.model.graphs import nodes_of_model, without_weights
from msn_deploy.model.identity import structural_hash

TIMEOUT_S = 120.0  # networks of this project's size take one to three
_LOG = logging.getLogger(__name__)
_MEMORY, _MEMORY_PER_BYTE = 4 << 30, 8  # bytes of address space, and more of them per byte of the model
_WORTH_A_CHANGE = 0.01  # of the file's bytes, saved by keeping equal weights once
_FOREIGN = ("fuse_attention",)  # steps of onnxsim that write operators of ONNX Runtime, which TensorRT has not
_EXIT_MISSING = 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_START = "import sys; sys.path[:] = sys.argv[2:]; from msn_deploy.graph.simplify import work; work(float(sys.argv[1]))"
_PACKAGE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, slots=True)
class Simplified:
    """What came of it."""

    model: ModelProto
    """onnxsim's graph, or the very graph that was given."""
    kept_because: str | None = None
    """Why the given graph was kept; None if onnxsim's was taken, or was the same."""
    unchanged: bool = False
    """Whether onnxsim's was the same bit for bit, but for names and order."""


class _UnusableError(Exception):
    """Why onnxsim's result is not taken."""


def simplify(model: ModelProto, *, timeout_s: float = TIMEOUT_S) -> Simplified:
    """Return the simplified graph, or the graph itself where onnxsim fails on it or harms it (see `simplifier`)."""
    with simplifier(timeout_s=timeout_s) as onnxsim:
        onnxsim.start(model, model.SerializeToString())
        return onnxsim.result()


@contextlib.contextmanager
def simplifier(*, timeout_s: float = TIMEOUT_S) -> Iterator[Simplifier]:
    """Start a process that loads onnxsim, which takes it a second, while the graph is still being made.

    Whatever ends the block, be it Ctrl-C, ends the process and all that it started. timeout_s: for one graph.
    """
    with partial_folder() as folder, _worker(folder, timeout_s) as worker:
        try:
            yield Simplifier(folder, worker, timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # ended, and nothing else of its group left
                os.killpg(worker.pid, signal.SIGKILL)


def _worker(folder: Path, timeout_s: float) -> subprocess.Popen[bytes]:
    here = os.getcwd()
    # -I: no module of the working directory or of PYTHONSTARTUP and the like; what this process imports from is passed.
    paths = [_PACKAGE, *(path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) != here)]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _START, str(timeout_s), *paths],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        | dict.fromkeys(("HOME", "TMPDIR"), str(folder)),
        bufsize=0,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


class Simplifier:
    """onnxsim at work on one graph, beside whoever started it."""

    def __init__(self, folder: Path, worker: subprocess.Popen[bytes], timeout_s: float) -> None:
        self._folder, self._worker, self._timeout_s = folder, worker, timeout_s

    def start(self, model: ModelProto, data: bytes) -> None:
        """Begin; data: the bytes of `model`, which must not be changed before there is a result."""
        self._model = model
        (self._folder / "before.onnx").write_bytes(data)
        self._began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its exit code will tell why
            cast("IO[bytes]", self._worker.stdin).write(b"\n")

    def result(self) -> Simplified:
        """Wait for it. Return its graph, or (with a line in the log) the graph itself where it fails on it or harms it.

        The result is taken only if it is valid and all inputs and outputs keep name, type and shape. The caller
        compares outputs before it trusts it: onnxsim has changed them before (its issue 1284).
        Raises MissingDependency.
        """
        model = self._model
        try:
            simplified = self._made()
            check_valid(simplified, source="its graph")
            _require_same_contract(model, simplified)
            _require_same_domains(model, simplified)
        except (_UnusableError, InputError) as cause:
            why = str(cause) if isinstance(cause, _UnusableError) else f"onnxsim failed ({cause})"
            _LOG.warning("kept the unsimplified graph: %s", why)
            return Simplified(model, kept_because=why)
        saved = sum(tensor.ByteSize() for tensor in model.graph.initializer)
        saved -= sum(tensor.ByteSize() for tensor in simplified.graph.initializer)
        alike = structural_hash(simplified, weights=True) == structural_hash(model, weights=True)
        if alike and saved < _WORTH_A_CHANGE * model.ByteSize():
            return Simplified(model, unchanged=True)
        return Simplified(simplified)

    def _made(self) -> ModelProto:
        try:
            code = self._worker.wait(max(0.0, self._began + self._timeout_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        if code == -signal.SIGALRM:
            raise _UnusableError(f"onnxsim took more than {self._timeout_s:g} s")
        reason = self._folder / "reason"
        said = reason.read_text(encoding="utf-8") if reason.is_file() else ""
        if code == _EXIT_MISSING and said:
            raise missing("onnxsim", step="export", cause=said)
        if code != 0:
            death = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise _UnusableError(f"onnxsim failed ({said or death})")
        try:
            return onnx.load(self._folder / "after.onnx", load_external_data=False)
        except Exception as cause:  # no such file, or protobuf's DecodeError
            raise _UnusableError(f"onnxsim failed (its file cannot be read: {type(cause).__name__})") from cause


def work(timeout_s: float) -> None:
    """Make after.onnx of before.onnx in the working directory, or leave the reason in `reason`; ends the process.

    Begins when there is a line to read, and does nothing where there is none: whoever started it has ended.
    """
    with contextlib.suppress(
        OSError, AttributeError
    ):  # Linux: not even a kill -9 of whoever started it leaves it alone
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    modules: dict[str, Any] = sys.modules
    modules["torch"] = modules["sympy"] = None  # onnxsim imports them where it finds them, for 3 s
    code = 0
    try:
        onnxsim = importlib.import_module("onnxsim")
        if not sys.stdin.readline():
            os._exit(0)
        signal.alarm(int(timeout_s) + 2)  # ends it even if nobody is left to kill it
        most = _MEMORY + _MEMORY_PER_BYTE * os.path.getsize("before.onnx")
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        given = onnx.load("before.onnx", load_external_data=False)
        simplified, _ = onnxsim.simplify(given, skipped_optimizers=[*_FOREIGN])
        onnx.save(simplified, "after.onnx")
    except Exception as cause:  # onnxsim raises RuntimeError, ValueError and its own C++ errors alike
        code = _EXIT_MISSING if isinstance(cause, ImportError) else 1
        said = str(cause) if isinstance(cause, ImportError) else f"{type(cause).__name__}: {cause}"
        Path("reason").write_text(" ".join(said.split())[:200], encoding="utf-8")
    os._exit(code)  # what onnxsim's libraries do at a regular end has no say in the result


def _require_same_contract(before: ModelProto, after: ModelProto) -> None:
    """Raise _UnusableError if an input or output has another name, type or shape; sizes keep the names they had.

    An output may have a number where its size was open, if it follows from the inputs' sizes.
    """
    inputs = _tensors(before, "input")
    follows = all(isinstance(size, int) for value in inputs for size in _sizes(value) or ("?",))
    bare = ModelProto() if follows else without_weights(before)
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.value_info}
    for kind, told in (("input", inputs), ("output", _tensors(before, "output"))):
        found = _tensors(after, kind)
        known = [value if kind == "input" else inferred.get(value.name, value) for value in told]
        same = len(told) == len(found) and all(
            _keeps(*each, more=follows and kind == "output") for each in zip(told, found, known, strict=True)
        )
        if not same:
            was, now = (", ".join(map(_text, values)) for values in (told, found))
            raise _UnusableError(f"onnxsim changed the {kind}s from {was} to {now}")
        for old, new in zip(told, found, strict=True):
            for was, now in zip(old.type.tensor_type.shape.dim, new.type.tensor_type.shape.dim, strict=False):
                if not now.HasField("dim_value"):
                    now.CopyFrom(was)


def _require_same_domains(before: ModelProto, after: ModelProto) -> None:
    """Raise _UnusableError for an operator of somebody else's that was not there before."""
    added = {node.domain for node in nodes_of_model(after)} - {node.domain for node in nodes_of_model(before)}
    if added - {"", "ai.onnx"}:
        raise _UnusableError(f"onnxsim wrote operators of the domain {', '.join(sorted(added))}")


def _keeps(old: ValueInfoProto, new: ValueInfoProto, known: ValueInfoProto, *, more: bool) -> bool:
    """Whether a tensor is still what it was. known: with the sizes that follow; more: all that are open follow."""
    if (old.name, old.type.tensor_type.elem_type) != (new.name, new.type.tensor_type.elem_type):
        return False
    was, now, follow = _sizes(old), _sizes(new), _sizes(known)
    if was is None or now is None:
        return was is now or (now is not None and (more or now == follow))
    if len(was) != len(now):
        return False
    follow = was if follow is None or len(follow) != len(was) else follow
    return all(
        a == b or (isinstance(a, str) and (isinstance(b, str) or more or b == c))
        for a, b, c in zip(was, now, follow, strict=True)
    )


def _tensors(model: ModelProto, kind: str) -> list[ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in getattr(model.graph, kind) if value.name not in weights]


def _sizes(value: ValueInfoProto) -> list[int | str] | None:
    """Return the sizes of a tensor, a name or "?" where they are open; None where not even their number is known."""
    tensor = value.type.tensor_type
    sizes: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
    ]
    return sizes if tensor.HasField("shape") else None


def _text(value: ValueInfoProto) -> str:
    sizes = _sizes(value)
    shape = "?" if sizes is None else "x".join(map(str, sizes))
    return f"{value.name} ({onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()} {shape})"
