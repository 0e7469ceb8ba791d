"""Which opset does an exported file get? What the user asks for, else what the target's TensorRT reads, else 17."""

from __future__ import annotations

import logging

from onnx import ModelProto

from msn_deploy.core.errors import InputError
from msn_deploy.machine.jetpacks import first_to_read, opset_for, opset_read
from msn_deploy.machine.targets import Target, find_target
from msn_deploy.model.opset import DEFAULT_OPSET, OpsetError, first_lacked, lowered, opset_of, to_opset

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
    releases = machine.tensorrt if machine else ()
    most = max(map(opset_read, releases), default=None)
    limit = f"TensorRT {releases[-1]} of {machine.title} reads opset {most} at most" if machine and releases else ""
    if opset is not None and most is not None and opset > most:
        raise InputError(f"{limit}, not {opset}.\nTry `--opset {most}`.")
    if opset is None:
        graph, blocked = lowered(graph, min([DEFAULT_OPSET if ours else opset_of(graph), *map(opset_for, releases)]))
        if blocked is not None and most is not None and blocked.needs > most:
            raise InputError(f"{limit}.\nThe graph has more: {blocked}, which {_readers(blocked.needs)}.")
    else:
        try:
            graph = to_opset(graph, opset)
        except OpsetError as cause:
            if cause.blocked is None:
                raise
            what, needs = str(cause).splitlines()[0], cause.blocked.needs
            if most is not None and needs > most:
                raise InputError(f"{what}\n{limit}.") from cause
            raise InputError(f"{what}\nTry `--opset {needs}`, which {_readers(needs)}.") from cause
    if machine is not None:
        warn_of_unread(graph, machine)
    return graph


def warn_of_unread(graph: ModelProto, machine: Target) -> None:
    """Log which releases of TensorRT that a target may have do not read a graph, and why."""
    opset = opset_of(graph)
    for version in machine.tensorrt:
        lacked = first_lacked(graph, opset_for(version))
        if opset > opset_read(version):
            why = f"reads opset {opset_read(version)} at most; the file has {opset}"
        elif lacked is not None:
            why = f"has no {lacked.op_type}, which {lacked.name or lacked.output[0]!r} of the file is"
        else:
            continue
        _LOG.warning("TensorRT %s of %s %s", version, machine.title, why)


def _readers(opset: int) -> str:
    first = first_to_read(opset)
    return f"TensorRT {first} and later read" if first else "no TensorRT that is known here reads"
