"""Which opset does an exported file get? What the user asks for, else what the target's TensorRT reads, else 17."""

from __future__ import annotations

import logging

from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.machine.jetpacks import first_to_read, opset_read
from msn_deploy.machine.targets import Target, find_target
from msn_deploy.model.opset import DEFAULT_OPSET, Blocked, OpsetError, lowered, opset_of, to_opset

_LOG = logging.getLogger(__name__)


def at_opset(graph: ModelProto, *, opset: int | None, target: str | None, ours: bool) -> ModelProto:
    """Return a graph in its opset; it may be changed in place.

    Args:
        graph: What is exported.
        opset: What the user asks for: obeyed or refused. None: the lowest from 17 on that has what the graph uses.
        target: The machine that it is for; its oldest TensorRT decides instead of 17.
        ours: Whether torch wrote the graph. A file of others keeps its opset where nothing is asked.

    Raises:
        InputError: It cannot be written in that opset, or the target has no TensorRT that reads it.
    """
    machine = None if target is None else find_target(target)
    reads = sorted(opset_read(version) for version in machine.tensorrt) if machine else []
    if opset is None:
        wanted = min([DEFAULT_OPSET, *reads]) if ours else min([opset_of(graph), *reads])
        graph, blocked = lowered(graph, wanted)
    else:
        if machine and reads and opset > reads[-1]:
            raise InputError(f"{_most(machine, reads)}, not {opset}.\nTry `--opset {reads[-1]}`.")
        try:
            graph, blocked = to_opset(graph, opset), None
        except OpsetError as cause:
            if cause.blocked is None:
                raise
            what, needs = str(cause).splitlines()[0], cause.blocked.needs
            if reads and needs > reads[-1]:
                raise InputError(f"{what}\n{_most(machine, reads)}.") from cause
            raise InputError(f"{what}\nTry `--opset {needs}`, which {_readers(needs)}.") from cause
    if machine and reads and opset_of(graph) > reads[0]:
        _require_read(machine, reads, opset_of(graph), blocked)
    return graph


def _require_read(machine: Target, reads: list[int], opset: int, blocked: Blocked | None) -> None:
    """Raise InputError if no TensorRT of a target reads a graph; say which do if some do not."""
    why = f"{blocked}" if blocked else f"`--opset {opset}`"
    if opset > reads[-1]:
        raise InputError(f"{_most(machine, reads)}.\nThe graph has more: {why}, which {_readers(opset)}.")
    left_out = [version for version in machine.tensorrt if opset_read(version) < opset]
    _LOG.warning("TensorRT %s of %s cannot read the file: %s", " and ".join(left_out), machine.title, why)


def _most(machine: Target | None, reads: list[int]) -> str:
    title, newest = (machine.title, machine.tensorrt[-1]) if machine else ("", "")
    return f"TensorRT {newest} of {title} reads opset {reads[-1]} at most"


def _readers(opset: int) -> str:
    first = first_to_read(opset)
    return f"TensorRT {first} and later read" if first else "no TensorRT that is known here reads"
