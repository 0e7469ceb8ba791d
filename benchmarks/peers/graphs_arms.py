"""The arms of graphs.py: one network through every exporter and optimiser, and how far each graph is from the network.

Peers start from what torch's exporter writes with its own optimiser; where that graph is wrong or does not go through,
from the unoptimised one, so that nobody answers for another's mistake. A peer that fails on the MSN layers themselves
is given the network after `msn_deploy.msn.fold`.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from graphs_exact import OPSET, Network, run_float32, run_float64, torch_exports, verdict
from graphs_nets import Case
from onnx import ModelProto
from torch import nn

from msn_deploy.graph.export import _quiet, to_onnx
from msn_deploy.graph.fold import fold_graph
from msn_deploy.graph.simplify import simplify
from msn_deploy.msn import fold, fold_layers
from msn_deploy.nets.densenet_bc import Shift
from msn_deploy.pipeline.export import export_onnx

OURS = "ours"
_NEGATIVE = 0.3  # share of negative gains in the network that only exactness is measured on
_OF_NORMS = ("BatchNormalization", "InstanceNormalization", "Conv", "Mul", "Add", "Sub", "Div", "Sqrt", "MatMul")

Optimise = Callable[[ModelProto], ModelProto]


def _onnxsim(graph: ModelProto) -> ModelProto:
    import onnxsim

    return onnxsim.simplify(graph)[0]


def _onnxslim(graph: ModelProto) -> ModelProto:
    import onnxslim

    return onnxslim.slim(copy.deepcopy(graph))


def through_ort(graph: ModelProto, level: str) -> ModelProto:
    """Return what ONNX Runtime makes of a graph before it runs it; level: "extended" or "all", its default."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder:
        options.optimized_model_filepath = f"{folder}/graph.onnx"
        ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


PEERS: dict[str, Optimise] = {
    "torch": lambda graph: graph,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "ORT extended": lambda graph: through_ort(graph, "extended"),
    "ORT all": lambda graph: through_ort(graph, "all"),
}


@dataclass(kw_only=True)
class Row:
    """One arm of one network. graphs: by batch size, float32; facts: what the result file says of it, but for times."""

    facts: dict[str, Any]
    graphs: dict[int, ModelProto] = field(default_factory=dict)


def runtime_identity(graph: ModelProto) -> tuple[str, int]:
    """Return a hash of the graph that ONNX Runtime really runs, weights and names aside, and its number of nodes."""
    from msn_deploy.model.identity import structural_hash

    really = through_ort(graph, "all")
    return structural_hash(really), len(really.graph.node)


def ours_in_double(model: nn.Module, shape: tuple[int, ...]) -> ModelProto:
    """Take the steps of `export_onnx` in float64, which ONNX Runtime, with which it ends, does not run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        plain, _ = fold_layers(model)
        return simplify(fold_graph(to_onnx(plain, input_shape=shape, opset=OPSET, optimize=False)).model).model
    finally:
        torch.set_default_dtype(before)


def ours(source: str, shape: tuple[int, ...]) -> ModelProto:
    """Export FILE.py:FACTORY as a user does, in the opset of the peers, so that equal graphs look equal."""
    with tempfile.TemporaryDirectory(prefix="msn-deploy-") as folder, _quiet():
        return onnx.load(export_onnx(source, Path(folder) / "ours.onnx", input_shape=shape, opset=OPSET).path)


def build(case: Case, batches: tuple[int, ...]) -> dict[str, Row]:
    """Build every arm of a case and hold it against torch in float64; one that fails has a row that says why."""
    nets = [Network(case, seed=0, negative=0.0)]
    if case.has_gains:
        nets.append(Network(case, seed=1, negative=_NEGATIVE))
    plain = _operators_without_norms(nets[0])
    tolerance = nets[0].tolerance(batches[-1])
    rows = {name: _peer(name, nets, batches, tolerance) for name in PEERS}
    rows[OURS] = _ours(nets, batches, tolerance)
    for row in rows.values():
        if row.graphs:
            row.facts |= _looks(row.graphs, plain)
    return rows


def _peer(name: str, nets: list[Network], batches: tuple[int, ...], tolerance: dict[str, float]) -> Row:
    """Return the row of the first way on which a peer gets an exact graph, else of the first that works at all."""
    if name == "onnxslim" and importlib.util.find_spec("onnxslim") is None:
        return Row(facts={"note": "not installed"})
    has_msn = any(hasattr(module, "shift") for module in nets[0].model.modules())
    starts = ("torch",) if name == "torch" else ("torch", "unoptimised")
    fallback, failures = None, []
    for how in ("as is", "folded first") if has_msn else ("as is",):
        for start in starts:
            try:
                row = _attempt(PEERS[name], how, start, nets, batches, tolerance)
            except Exception as cause:  # each optimiser has errors of its own
                failures.append(f"{how}, from {start}: {_first_line(cause)}")
                continue
            row.facts["note"] = "; ".join(failures)
            if row.facts["is_exact"]:
                return row
            fallback = fallback or row
        if fallback is not None:
            break
    return fallback or Row(facts={"note": "; ".join(failures)})


def _attempt(
    optimise: Optimise,
    how: str,
    start: str,
    nets: list[Network],
    batches: tuple[int, ...],
    tolerance: dict[str, float],
) -> Row:
    graphs = {batch: optimise(nets[0].exports(how, batch, double=False)[start]) for batch in batches}
    doubles = []
    try:
        for net in nets:
            graph = optimise(net.exports(how, 1, double=True)[start])
            doubles.append(net.off(run_float64(graph, net.x(1).astype(np.float64)), 1))
    except Exception:  # an optimiser without float64, or operators that only ONNX Runtime has
        doubles = []
    singles = [nets[0].off(run_float32(graph, nets[0].x(batch)), batch) for batch, graph in graphs.items()]
    if not doubles and len(nets) > 1:
        graph = optimise(nets[1].exports(how, 1, double=False)[start])
        singles.append(nets[1].off(run_float32(graph, nets[1].x(1)), 1))
    return Row(facts={"given": how, "from": start, **verdict(doubles, singles, tolerance)}, graphs=graphs)


def _ours(nets: list[Network], batches: tuple[int, ...], tolerance: dict[str, float]) -> Row:
    shape = nets[0].case.shape
    graphs = {batch: ours(nets[0].case.source, (batch, *shape)) for batch in batches}
    doubles = []
    for net in nets:
        graph = ours_in_double(net.given("as is", double=True), (1, *shape))
        doubles.append(net.off(run_float64(graph, net.x(1).astype(np.float64)), 1))
    singles = [nets[0].off(run_float32(graph, nets[0].x(batch)), batch) for batch, graph in graphs.items()]
    facts = {"given": "as is", "from": "FILE.py:FACTORY", "note": "", **verdict(doubles, singles, tolerance)}
    return Row(facts=facts, graphs=graphs)


def _looks(graphs: dict[int, ModelProto], plain: Counter[str]) -> dict[str, Any]:
    first = next(iter(graphs.values()))
    left = _operators(first) - plain
    identities = {batch: runtime_identity(graph) for batch, graph in graphs.items()}
    return {
        "nodes": {str(batch): len(graph.graph.node) for batch, graph in graphs.items()},
        "bytes": len(first.SerializeToString()),
        "operators": dict(sorted(Counter(node.op_type for node in first.graph.node).items())),
        "norms_left": {name: left[name] for name in _OF_NORMS if left[name]},
        "runs": {str(batch): identity for batch, (identity, _) in identities.items()},
        "runs_nodes": {str(batch): nodes for batch, (_, nodes) in identities.items()},
    }


def _operators(graph: ModelProto) -> Counter[str]:
    return Counter(node.op_type.removeprefix("Fused") for node in graph.graph.node)


def _operators_without_norms(net: Network) -> Counter[str]:
    """Count the operators of the network with every norm taken out: what an arm has beyond them is left of norms."""
    model = fold(net.model, strict=False)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d | Shift):
                setattr(parent, name, nn.Identity())
    return _operators(torch_exports(model, (1, *net.case.shape), double=False)["torch"])


def _first_line(cause: Exception) -> str:
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:160]}" if lines else type(cause).__name__
