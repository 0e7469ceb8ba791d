"""The data flow of a network that torch.fx cannot follow, by torch.export and an example of what the network takes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

_LAYERS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
Example = torch.Tensor | tuple[Any, ...]
"""An input of a network, or all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Which module feeds which norm, each by its name in the network."""

    feeders: dict[str, tuple[str, int]]
    """Of every norm that is reached, the layer that makes what it reads ("" for none), and how many read that."""
    calls: Counter[str]
    """How often each layer and norm is called."""
    read: frozenset[str]
    """Modules whose tensors are also read by something else."""


def exported(model: nn.Module, example: Example) -> Exported:
    """Follow a network in its own modes; it is left as it is. Raises whatever torch.export does."""
    program = torch.export.export(copy.deepcopy(model), _cloned(example), strict=False)
    signature = program.graph_signature
    owners = {
        name: tensor.rpartition(".")
        for name, tensor in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items()
    }
    feeders: dict[str, tuple[str, int]] = {}
    calls: Counter[str] = Counter()
    read: set[str] = set()
    made_by: dict[fx.Node, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        kind = str(node.target).removeprefix("aten.").partition(".")[0]
        held = [each for each in node.all_input_nodes if each.name in owners]
        named = {owners[each.name][0] for each in held if each is not node.args[0]}
        if kind in (*_LAYERS, "batch_norm") and len(named) == 1:
            (name,) = named
            calls[name] += 1
            if kind == "batch_norm":
                source = node.args[0]
                feeders[name] = (made_by.get(source, ""), len(source.users))
            else:
                made_by[node] = name
        else:
            read |= {owners[each.name][0] for each in held if owners[each.name][2] != "num_batches_tracked"}
    return Exported(feeders=feeders, calls=calls, read=frozenset(read))


def calls_all(model: nn.Module, names: Collection[str], example: Example, *modes: bool) -> bool:
    """Tell whether runs of a copy call every module of these names; modes: of the runs, whether they are training."""
    called: set[str] = set()
    for training in modes:
        trial = copy.deepcopy(model).train(training)
        for name in names:
            trial.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name))
        with torch.random.fork_rng(), torch.no_grad():
            trial(*_cloned(example))
    return called == set(names)


def _cloned(example: Example) -> tuple[Any, ...]:
    """Return the inputs, which a network may change."""
    return tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in _inputs(example))


def _inputs(example: Example) -> tuple[Any, ...]:
    return (example,) if isinstance(example, torch.Tensor) else tuple(example)
