"""How long does each layer take? ONNX Runtime's profiler and TensorRT's, as one table.

Profiling slows a query down, so these times show where the time goes, not how long a query takes.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.reader import parse_json
from msn_deploy.engine.inspector import INSPECTED_BYTES, layers_from_json
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.engine.trt import TrtRunner
from msn_deploy.model.opened import OpenModel, made_model

if TYPE_CHECKING:
    from msn_deploy.model.feeds import Feeds

RUNS = 50
_MOST_BYTES = 512 << 20  # of what a profiler writes: some lines per node and query
_WARM_UP = 5  # runs that do not count
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8"}
# How ONNX Runtime renames: a convolution in its blocked layout is called after what it makes, a tensor that was moved
# before QuantizeLinear or freed of a cast after the one it replaces.
_BLOCKED, _MOVED, _UNCAST = "_nchwc", "_pre_q", "InsertedPrecisionFreeCast_"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer as the runtime runs it. us: per query, median over the runs; share: of the sum over all layers.

    operator: in the runtime's words. precision: of what it reads first, None if the runtime does not say. fused_from:
    the nodes of the file that went into it, () where it is one of them or the runtime's own.
    """

    name: str
    operator: str
    us: float
    share: float
    precision: str | None
    fused_from: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """All layers in the order they run. source: whose profiler it was. runs: that the medians are over."""

    source: str
    runs: int
    layers: tuple[LayerTime, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the time of one query of an engine goes, by the GPU's clock, ms: medians over runs, nothing else in flight.

    trtexec calls the three H2D Latency, GPU Compute Time and D2H Latency, and their sum Latency.
    """

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float
    runs: int

    @property
    def sum_ms(self) -> float:
        """All three."""
        return self.copy_in_ms + self.compute_ms + self.copy_out_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """A layer and what each run took, us."""

    name: str
    operator: str
    precision: str | None
    runs_us: Sequence[float]
    fused_from: tuple[str, ...]


def time_ort_layers(
    model: OpenModel,
    feeds: Sequence[Feeds],
    *,
    threads: int | None = None,
    provider: str = "cpu",
    fuse_norms: bool = True,
    runs: int = RUNS,
) -> LayerTimes:
    """Run an opened model in a session of its own, with ONNX Runtime's profiler on; what it writes is removed.

    Raises InputError for a provider other than cpu, whose layers run on a device while the profiler times the launch.
    """
    if provider != "cpu":
        raise InputError(
            f"ONNX Runtime's profiler times the launches on {provider}, not the layers.\n"
            "Take `--device cpu`, or build an engine with `msn-deploy build-engine`."
        )
    import onnx  # late: importing engine/ must stay light

    named = onnx.ModelProto()
    named.CopyFrom(model.proto)
    _name_nodes(named.graph)
    with partial_folder() as folder:
        optimized = folder / "optimized.onnx"
        runner = OrtRunner(
            made_model(model.path, named, named.SerializeToString()),
            threads=threads,
            provider=provider,
            fuse_norms=fuse_norms,
            optimized_to=optimized,
            profile_to=folder / "profile",
        )
        try:
            for at in range(_WARM_UP + runs):
                runner.run(feeds[at % len(feeds)])
            profile = runner.end_profiling()
        finally:
            runner.close()
        made_from = fusions(named.graph, onnx.load(optimized).graph)
        events = parse_json(profile.read_bytes(), source="ONNX Runtime's profile", most_bytes=_MOST_BYTES)
    timed = _from_profile(events, made_from, {node.name: node.op_type for node in named.graph.node}, skip=_WARM_UP)
    return _table("ONNX Runtime's profiler", timed, runs)


def time_trt_layers(runner: TrtRunner, feeds: Sequence[Feeds], *, runs: int = RUNS) -> LayerTimes:
    """Run a loaded engine with TensorRT's layer profiler; the runner is slower afterwards."""
    taken: defaultdict[str, list[float]] = defaultdict(list)
    inspected = runner.report_layers(lambda name, ms: taken[name].append(1e3 * ms))
    for at in range(_WARM_UP + runs):
        runner.run(feeds[at % len(feeds)])
    rows = {row.name: row for row in layers_from_json(inspected)}
    origins = _origins(inspected)
    timed = []
    for name, each in taken.items():
        row = rows.get(name)
        named = origins.get(name) or re.split(r" \+ ", name)
        timed.append(
            _Timed(
                name=name,
                operator=row.kind if row is not None else "",
                precision=row.precision if row is not None else None,
                runs_us=each[-runs:],
                fused_from=tuple(named) if len(named) > 1 else (),
            )
        )
    return _table("TensorRT's layer profiler", timed, runs)


def time_stages(runner: TrtRunner, feeds: Sequence[Feeds], *, runs: int = RUNS) -> Stages:
    """Run a loaded engine, one query at a time, and wait after each stage of it."""
    taken = [runner.run_in_stages(feeds[at % len(feeds)]) for at in range(_WARM_UP + runs)][_WARM_UP:]
    copy_in, compute, copy_out = (statistics.median(each) for each in zip(*taken, strict=True))
    return Stages(copy_in_ms=copy_in, compute_ms=compute, copy_out_ms=copy_out, runs=runs)


def _table(source: str, timed: Sequence[_Timed], runs: int) -> LayerTimes:
    medians = [statistics.median(each.runs_us) for each in timed]
    total = sum(medians) or 1.0
    rows = [
        LayerTime(
            name=each.name,
            operator=each.operator,
            us=us,
            share=us / total,
            precision=each.precision,
            fused_from=each.fused_from,
        )
        for each, us in zip(timed, medians, strict=True)
    ]
    return LayerTimes(source=source, runs=runs, layers=tuple(rows))


def _name_nodes(graph: Any) -> None:
    """Give every node a name of its own: the profiler tells layers apart by it."""
    taken: set[str] = set()
    for at, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{at}"
        taken.add(node.name)


def _from_profile(
    events: Any, made_from: Mapping[str, tuple[str, ...]], kinds: Mapping[str, str], *, skip: int
) -> list[_Timed]:
    """Read ONNX Runtime's trace: one event per node and run, in microseconds. kinds: operator of each node of the file.

    The runtime's own names say little, so a layer is called after the node that gave it its operator.
    """
    runs: defaultdict[str, list[float]] = defaultdict(list)
    first: dict[str, Any] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            key = name.removesuffix("_kernel_time")
            runs[key].append(float(event["dur"]))
            first.setdefault(key, event["args"])
    return [
        _Timed(
            name=_name(key, str(args.get("op_name", "")), made_from.get(key, ()), kinds),
            operator=str(args.get("op_name", "")),
            precision=_precision(args.get("input_type_shape") or [{}]),
            runs_us=runs[key][skip:],
            fused_from=made_from.get(key, ()) if len(made_from.get(key, ())) > 1 else (),
        )
        for key, args in first.items()
    ]


def _name(key: str, operator: str, nodes: Sequence[str], kinds: Mapping[str, str]) -> str:
    if key in kinds or not nodes:
        return key
    return next((each for each in nodes if kinds[each] == operator.removeprefix("Fused")), nodes[0])


def _precision(inputs: Sequence[Mapping[str, Any]]) -> str | None:
    kind = next(iter(inputs[0]), None)
    return None if kind is None else _PRECISIONS.get(kind, kind)


def fusions(graph: Any, optimized: Any) -> dict[str, tuple[str, ...]]:
    """Return, for each node of the graph that runs, the nodes of the file that it does the work of, in their order.

    Most tensors and nodes keep their names through the optimiser's passes, so a node stands for what lies between the
    tensors that it makes, or that its namesake made, and those of the others.
    """
    made = {node.name: tuple(node.output) for node in graph.node}
    owner: dict[str, str] = {}
    for node in optimized.node:
        blocked = [node.name.removesuffix(_BLOCKED)] if node.name.endswith(_BLOCKED) else []
        for name in (*made.get(node.name, ()), *blocked, *node.output):
            owner.setdefault(name.removeprefix(_UNCAST).removesuffix(_MOVED), node.name)
    maker = {name: node for node in graph.node for name in node.output}
    order = {node.name: at for at, node in enumerate(graph.node)}
    found: dict[str, set[str]] = {node.name: set() for node in optimized.node}
    for tensor, name in owner.items():
        waiting = [tensor]
        while waiting:
            made_by = maker.get(current := waiting.pop())
            if made_by is None or (current != tensor and current in owner) or made_by.name in found[name]:
                continue
            found[name].add(made_by.name)
            waiting += made_by.input
    return {name: tuple(sorted(nodes, key=order.__getitem__)) for name, nodes in found.items()}


def _origins(inspected: str) -> dict[str, list[str]]:
    """Read which ONNX nodes a layer of an engine stands for; TensorRT 10 writes them into its metadata."""
    try:
        rows = parse_json(inspected, source="the engine inspector's answer", most_bytes=INSPECTED_BYTES)["Layers"]
        return {
            str(row["Name"]): re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(row.get("Metadata", "")))
            for row in rows
            if isinstance(row, dict)
        }
    except (InputError, KeyError, TypeError):
        return {}
