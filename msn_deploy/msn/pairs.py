"""Which norm is fed by one layer alone, so that the two are one linear map? Found by data flow, with torch.fx."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.utils import parametrize

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The names of a layer and of the norm that alone reads it."""

    layer: str
    norm: str


def find_pairs(model: nn.Module) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs in data-flow order, and for every other BatchNorm the reason why it is none."""
    named = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    if not named:
        return [], {}
    try:
        graph = _Tracer().trace(model)
    except Exception as cause:  # fx raises whatever the model's own forward raises on a symbolic input
        reason = f"the data flow could not be traced ({type(cause).__name__}: {str(cause).splitlines()[0][:120]})"
        return [], dict.fromkeys(named, reason)
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs: list[Pair] = []
    reasons = {name: "the data flow never reaches it" for name in named if calls[name] == 0}
    for node in graph.nodes:
        if node.op == "call_module" and node.target in named:
            found = _pair_or_reason(model, node, calls, read)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                reasons[str(node.target)] = found
    return pairs, reasons


def why_opaque(layer: nn.Module) -> str | None:
    """Return why a layer may compute something else than its weights and its class say, or None."""
    if parametrize.is_parametrized(layer):
        return f"{type(layer).__name__} computes its weight by a parametrisation"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "forward hooks may change what it computes"
    return None


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that a forward that reads a norm's statistics itself shows in the graph


def _pair_or_reason(model: nn.Module, node: fx.Node, calls: Counter[object], read: set[str]) -> Pair | str:
    norm = model.get_submodule(str(node.target))
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return "no layer feeds it directly"
    layer = model.get_submodule(str(source.target))
    if not isinstance(layer, LAYERS):
        return f"{source.target} ({type(layer).__name__}) stands between it and the convolution before it"
    if calls[source.target] > 1 or calls[node.target] > 1:
        return f"{source.target} or the norm itself is used more than once"
    if read & {str(source.target), str(node.target)}:
        return f"the weights of {source.target} or of the norm are also used directly"
    if len(source.users) > 1:
        return f"the output of {source.target} is also used without the norm"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    for name, module in ((source.target, layer), (node.target, norm)):
        if reason := why_opaque(module):
            return f"{name}: {reason}"
    return Pair(layer=str(source.target), norm=str(node.target))
