"""Which norm is fed by one layer alone, so that the two are one linear map? The data flow tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from msn_deploy.msn.exported import Example, Exported, calls_all, exported
from msn_deploy.msn.layers import SpectralLayer, WSConv2d
from msn_deploy.msn.norm_act import left_behind

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
# The norm that takes for channels what the layer writes as such: BatchNorm1d behind a Conv2d can only be there for a
# single image without a batch, and normalises its rows.
_NORM_OF = dict(zip(LAYERS, (*BATCH_NORMS[:3], *BATCH_NORMS[:3], nn.BatchNorm1d), strict=True))
_UNREACHED = "the data flow never reaches it"
UNREGISTERED = (
    "the model calls layers that it does not hold as submodules, so that they cannot be replaced.\n"
    "Likely cause: a plain list of layers beside their attributes. Make it a torch.nn.ModuleList."
)
T = TypeVar("T")
Linear = _ConvNd | nn.Linear
"""What a layer of LAYERS is to a type checker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A layer and the norm that alone reads it, each with its name in the model."""

    layer: str
    norm: str
    linear: Linear
    batch_norm: _BatchNorm


def find_pairs(model: nn.Module, example: Example | None = None) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs in data-flow order, and for every other BatchNorm the reason why it is none.

    example: what the network takes, for one that torch.fx cannot follow; torch.export does then.
    """
    return _split(_flow(model, example).found)


def find_pairs_of_both_modes(model: nn.Module, example: Example | None = None) -> tuple[list[Pair], dict[str, str]]:
    """Return what `find_pairs` does, for norms that are a pair in training and in evaluation alike.

    A norm that only one of the two reaches (an auxiliary head) is a pair if the other leaves its layer alone, too.
    """
    evaluation, training = _in_both_modes(model, lambda each: _flow(each, example))
    found: dict[str, Pair | str] = {}
    for name, here in evaluation.found.items():
        there = training.found[name]
        if here == there or (isinstance(here, Pair) and there == _UNREACHED and here.layer not in training.called):
            found[name] = here
        elif isinstance(there, Pair) and here == _UNREACHED and there.layer not in evaluation.called:
            found[name] = there
        elif isinstance(here, str):
            found[name] = f"in evaluation, {here}"
        else:
            found[name] = f"in training, {there if isinstance(there, str) else 'another layer feeds it'}"
    return _split(found)


def calls_only_what_is_registered(model: nn.Module, replaced: Collection[str], example: Example | None) -> bool:
    """Tell whether a model still calls its layers after the modules of these names were replaced.

    It does not when its forward finds its layers elsewhere, such as in a plain list: there the old ones live on.
    """
    return all(_in_both_modes(model, _can_be_traced)) or (
        example is not None and calls_all(model, replaced, example, False, True)
    )


def evaluation_calls_only_what_is_registered(
    model: nn.Module, replaced: Collection[str], example: Example | None
) -> bool:
    """Tell the same of the mode that the model is in alone."""
    return _can_be_traced(model) or (example is not None and calls_all(model, replaced, example, False))


def _can_be_traced(model: nn.Module) -> bool:
    try:
        _Tracer().trace(model)
    except Exception:  # fx says it in several ways
        return False
    return True


def why_opaque(layer: nn.Module) -> str | None:
    """Return why a layer may compute something else than its weights and its class say, or None."""
    if parametrize.is_parametrized(layer):
        return f"{type(layer).__name__} computes its weight by a parametrisation"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "forward hooks may change what it computes"
    if "forward" in vars(layer):
        return "its forward has been replaced"
    return None


@dataclass(frozen=True, slots=True)
class _Flow:
    """What one trace tells: of every BatchNorm its pair or the reason against it, and which modules are called."""

    found: dict[str, Pair | str]
    called: frozenset[str]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # so that a forward that reads a norm's statistics itself shows in the graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What norms do inside cannot be traced, and a subclass that differs in its constructor alone is its base.
        opaque = isinstance(m, (SpectralLayer, WSConv2d, *BATCH_NORMS)) or _is_plain(m)
        return opaque or super().is_leaf_module(m, module_qualified_name)


def _in_both_modes(model: nn.Module, ask: Callable[[nn.Module], T]) -> tuple[T, T]:
    """Ask something of the model in evaluation and in training mode, and leave it in the modes that it has."""
    modes = {module: module.training for module in model.modules()}
    answers = []
    try:
        for training in (False, True):
            for module in modes:
                module.training = training  # not train(): a model may override that, to keep norms frozen for one
            answers.append(ask(model))
    finally:
        for module, training in modes.items():
            module.training = training
    return answers[0], answers[1]


def _split(found: dict[str, Pair | str]) -> tuple[list[Pair], dict[str, str]]:
    pairs = [each for each in found.values() if isinstance(each, Pair)]
    return pairs, {name: each for name, each in found.items() if isinstance(each, str)}


def _flow(model: nn.Module, example: Example | None) -> _Flow:
    named = [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]
    if not named:
        return _Flow({}, frozenset())
    try:
        flow = _by_fx(model)
    except Exception as cause:  # fx raises whatever the model's own forward raises on a symbolic input
        reason = f"the data flow could not be traced ({_said(cause)})"
        if example is None:
            return _Flow(dict.fromkeys(named, f"{reason}; with an `example`, torch.export is asked"), frozenset())
        try:
            flow = exported(model, example)
        except Exception as other:  # so does torch.export
            return _Flow(dict.fromkeys(named, f"{reason}, nor by torch.export ({_said(other)})"), frozenset())
    found: dict[str, Pair | str] = {name: _UNREACHED for name in named if name not in flow.feeders}
    found |= {name: _pair_or_reason(model, name, flow) for name in flow.feeders if name in named}
    return _Flow(found, frozenset(flow.calls))


def _said(cause: Exception) -> str:
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:160]


def _by_fx(model: nn.Module) -> Exported:
    graph = _Tracer().trace(model)
    feeders = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), BATCH_NORMS):
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            is_module = isinstance(source, fx.Node) and source.op == "call_module"
            feeders[str(node.target)] = (str(source.target), len(source.users)) if source and is_module else ("", 0)
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = frozenset(str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr")
    return Exported(feeders=feeders, calls=calls, read=read)


def _pair_or_reason(model: nn.Module, name: str, flow: Exported) -> Pair | str:
    norm, (feeder, readers) = model.get_submodule(name), flow.feeders[name]
    assert isinstance(norm, _BatchNorm)
    if not feeder:
        return "no layer feeds it directly"
    layer = model.get_submodule(feeder)
    if not isinstance(layer, LAYERS):
        return f"{feeder} ({type(layer).__name__}) stands between it and the convolution before it"
    if flow.calls[feeder] > 1 or flow.calls[name] > 1:
        return f"{feeder} or the norm itself is used more than once"
    if flow.read & {feeder, name}:
        return f"the weights of {feeder} or of the norm are also used directly"
    if readers > 1:
        return f"the output of {feeder} is also used without the norm"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    for named, module in ((feeder, layer), (name, norm)):
        if reason := why_opaque(module):
            return f"{named}: {reason}"
    return _mismatch(feeder, layer, norm) or Pair(layer=feeder, norm=name, linear=layer, batch_norm=norm)


def _mismatch(feeder: str, layer: Linear, norm: _BatchNorm) -> str | None:
    """Return why a norm does not act on the output channels of a layer as torch computes them, or None."""
    shown = f"{feeder} ({type(layer).__name__})"
    if isinstance(layer, (SpectralLayer, WSConv2d)):
        return f"{shown} is normalised already"
    for name, module, is_known in ((feeder, layer, _is_plain(layer)), ("it", norm, left_behind(norm) is not None)):
        if not is_known:
            return f"{name} ({type(module).__name__}) has a forward of its own"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    fitting = next(norm for kind, norm in _NORM_OF.items() if isinstance(layer, kind))
    if not isinstance(norm, (fitting, nn.SyncBatchNorm)) or norm.num_features != channels:
        return f"{type(norm).__name__}({norm.num_features}) does not act on the {channels} output channels of {shown}"
    return None


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a module is one of LAYERS or BATCH_NORMS and computes what torch's own does."""
    base = next((kind for kind in (*LAYERS, *BATCH_NORMS) if isinstance(module, kind)), None)
    methods = ("forward", "_conv_forward")
    return base is not None and all(getattr(type(module), each, 0) is getattr(base, each, 0) for each in methods)
