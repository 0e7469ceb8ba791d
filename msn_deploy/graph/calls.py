"""How a torch network is called with named arrays, and what it returns as named arrays.

A network takes and returns what its author liked: tensors, tuples, lists, dicts, dataclasses, one inside the other. An
ONNX file has a flat list of named tensors. A name is the path to a tensor: `left`, `features.0`, `boxes`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from msn_deploy.core.errors import InputError, root_line
from msn_deploy.model.feeds import BATCH, Array, ExampleInput, Feeds

INPUT_NAME = "input"  # of a network with one input that the user did not name
OUTPUT_NAME = "logits"  # of a network that returns one tensor and nothing around it
_OUTPUT = "output"  # before the number of an output that has no name
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Call:
    """The inputs of one network, in the order in which its `forward` takes them."""

    def __init__(self, net: nn.Module, specs: Sequence[ExampleInput]) -> None:
        """Bind inputs to the parameters of `forward`.

        One input called INPUT_NAME is the first parameter, whatever that is called. Raises InputError for a name that
        `forward` does not take, and for a parameter that it needs and no spec gives.
        """
        self._net_name = type(net).__name__
        parameters = list(inspect.signature(net.forward).parameters.values())
        named = [each for each in parameters if each.kind not in _VARIADIC]
        rooted: dict[str, list[ExampleInput]] = {}
        for spec in specs:
            root = spec.name.partition(".")[0]
            if len(specs) == 1 and spec.name == INPUT_NAME and named and named[0].name != INPUT_NAME:
                root = named[0].name
            rooted.setdefault(root, []).append(spec)
        self._check(parameters, named, rooted)
        hints = _hints(net)
        built = {root: _built(root, of, hints.get(root)) for root, of in rooted.items()}
        self._args: dict[str, Any] = {}
        for parameter in named:  # by position as far as that goes, which every exporter knows best
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.name not in built:
                break
            if isinstance(built[parameter.name], dict):  # a last one by position, the exporter takes for keywords
                break
            self._args[parameter.name] = built.pop(parameter.name)
        self._more: tuple[Any, ...] = ()
        if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
            unknown = [name for name in built if name not in {each.name for each in named}]
            self._more = tuple(built.pop(name) for name in unknown)
        self._kwargs = built
        self.specs: tuple[ExampleInput, ...] = tuple(pytree.tree_leaves(self._tree()))

    def _tree(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (*self._args.values(), *self._more), self._kwargs

    def _check(
        self,
        parameters: Sequence[inspect.Parameter],
        named: Sequence[inspect.Parameter],
        rooted: Mapping[str, Sequence[ExampleInput]],
    ) -> None:
        known = {each.name for each in named}
        open_ended = any(each.kind in _VARIADIC for each in parameters)
        takes = ", ".join(str(each) for each in parameters) or "nothing"
        unknown = [root for root in rooted if root not in known and not open_ended]
        if unknown:
            raise InputError(f"{self._net_name} has no input {unknown[0]!r}; its forward takes ({takes}).")
        needed = [each.name for each in named if each.default is inspect.Parameter.empty and each.name not in rooted]
        if needed:
            given = " ".join(f"--input {name}=1,3,32,32" for name in [*rooted, *needed])
            raise InputError(
                f"{self._net_name} has {len(rooted) + len(needed)} inputs; its forward takes ({takes}).\n"
                f"Give each with its own shape, such as `{given}`."
            )

    def arguments(self, feeds: Feeds) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs of `forward` with tensors that are the network's to write to."""
        made = pytree.tree_map(lambda spec: torch.from_numpy(np.array(feeds[spec.name])), self._tree())
        return made[0], made[1]

    def dynamic_shapes(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what torch.export wants to hear of sizes that stay open, None where all are fixed.

        A batch has its name from the start. What holds between other sizes (multiples of 32) torch finds out itself.
        """
        if not any(any(spec.open) for spec in self.specs):
            return None
        batch = torch.export.Dim(BATCH)
        shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for spec, tensor in zip(self.specs, pytree.tree_leaves((args, kwargs)), strict=True):
            dims = {
                at: batch if name == BATCH else torch.export.Dim.DYNAMIC for at, name in enumerate(spec.open) if name
            }
            if dims:
                shapes[tensor] = dims
        return shapes.dynamic_shapes(net, args, kwargs)

    def run(self, net: nn.Module, feeds: Feeds) -> dict[str, Array]:
        """Run a network that is in evaluation mode and return its outputs by name, floats as float32.

        Raises InputError for a network that does not run on these inputs, or returns no tensor.
        """
        args, kwargs = self.arguments(feeds)
        try:
            with torch.inference_mode():
                returned = net(*args, **kwargs)
        except Exception as cause:  # whatever the network itself raises
            shapes = ", ".join(f"{spec.name} {tuple(feeds[spec.name].shape)}" for spec in self.specs)
            raise InputError(
                f"the network does not run on {shapes}: {root_line(cause)}\n"
                "`--input-shape`, or `--input` for each of several inputs, says what it is fed."
            ) from cause
        return {name: _array(name, tensor) for name, tensor in named_tensors(returned, inputs=feeds).items()}


def named_tensors(returned: object, *, inputs: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of what a network returns, by their path; one that is called like an input gets a number.

    Raises InputError for a network that returns no tensor.
    """
    if isinstance(returned, Tensor):
        return {OUTPUT_NAME if OUTPUT_NAME not in inputs else f"{OUTPUT_NAME}_1": returned}
    leaves = list(_leaves(returned, ()))
    found: dict[str, Tensor] = {}
    for path, tensor in leaves:
        name = ".".join(path)
        if path[0].isdecimal():
            name = f"{_OUTPUT}_{name}" if len(leaves) > 1 else _OUTPUT
        free, count = name, 0
        while free in found or free in inputs:  # keys may also be equal as text
            count += 1
            free = f"{name}_{count}"
        found[free] = tensor
    if not found:
        raise InputError(f"the network returns {type(returned).__name__}, in which there is no tensor.")
    return found


def returns_flat(net: nn.Module, *, inputs: Collection[str]) -> list[str]:
    """Make a network of these inputs, in place, return a plain tuple of its tensors, each one a tensor of its own.

    Returns a list that holds their names as soon as the network has run.
    """
    names: list[str] = []

    def flat(_: nn.Module, args: Any, kwargs: Any, returned: object) -> tuple[Tensor, ...]:
        seen, made = {id(each) for each in pytree.tree_leaves((args, kwargs))}, []
        found = named_tensors(returned, inputs=inputs)
        names[:] = found
        for tensor in found.values():
            made.append(tensor.clone() if id(tensor) in seen else tensor)  # one name each in the graph
            seen.add(id(tensor))
        return tuple(made)

    net.register_forward_hook(flat, with_kwargs=True)
    return names


def _leaves(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yield every tensor in a value with its path; numbers, None and text are left out."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, (*path, str(key)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None) or [str(at) for at in range(len(value))]
        for name, each in zip(names, value, strict=True):
            yield from _leaves(each, (*path, name))


def _built(root: str, specs: Sequence[ExampleInput], hint: object) -> Any:
    """Return the tree of specs that one parameter takes: a spec itself, or lists and dicts as their names say."""
    parts: dict[str, Any] = {}
    for spec in specs:
        *way, last = spec.name.split(".")[1:] or [""]
        at = parts
        for step in way:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                raise InputError(f"the input {spec.name!r} lies inside another input.")
        if last in at:
            raise InputError(f"the input {spec.name!r} is given twice.")
        at[last] = spec
    if "" in parts:
        if len(parts) > 1:
            raise InputError(f"the input {root!r} is given as one tensor and as several.")
        return parts[""]
    return _as_hinted(_settled(parts), hint)


def _settled(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    made = {name: _settled(each) for name, each in tree.items()}
    return [made[str(at)] for at in range(len(made))] if set(made) == {str(at) for at in range(len(made))} else made


def _as_hinted(tree: Any, hint: object) -> Any:
    """Return the tree as the dataclass, named tuple or tuple that `forward` says it takes."""
    kind = getattr(hint, "__origin__", hint)
    if isinstance(kind, type) and isinstance(tree, dict):
        if dataclasses.is_dataclass(kind):
            if kind not in pytree.SUPPORTED_NODES:
                torch.export.register_dataclass(kind)
            return kind(**tree)
        if issubclass(kind, tuple):
            return kind(**tree)
    return tuple(tree) if isinstance(tree, list) and kind is tuple else tree


def _hints(net: nn.Module) -> dict[str, object]:
    try:
        return get_type_hints(type(net).forward)
    except (NameError, TypeError, AttributeError):  # names that only a type checker knows
        return {}


def _array(name: str, tensor: Tensor) -> Array:
    if tensor.is_complex():
        raise InputError(
            f"the network's output {name} is of complex numbers, which TensorRT has not.\n"
            "Return the real and the imaginary part, `torch.view_as_real(y)`."
        )
    made: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
    return made
