"""Is a parsed ONNX model whole, of a supported version, and free of numbers that no network works with?

What is refused here would else end in a crash, a hang, all memory used up, or logits that are not numbers; or in the
message of a library that names none of its cause. Shape inference gives the sizes, before anything runs or folds
constants: ONNX Runtime allocates while it loads a file, since it computes there and then what follows from constants.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

from msn_deploy.core.errors import InputError, size_text
from msn_deploy.model.graphs import (
    MOST_BYTES,
    OPEN,
    all_nodes,
    all_tensors,
    bytes_of,
    constants_of,
    flaw_of,
    inner_graphs,
    nodes_of_model,
    shape_text,
    sparse_tensors,
    values_of,
    without_weights,
)

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # ONNX's own, and what ONNX Runtime adds
_OLDEST_OPSET = 9  # of TensorRT's parser
_MOST_NODES = 100_000  # after functions are put in; a function may call others twice, and they others
_ENDLESS = ("Loop", "Scan", "SequenceMap")
_AGAIN = "The file is damaged, or its exporter is at fault. Copy it again, or export the network again."
# Operators whose constants are weights; elsewhere (Clip, Pad, Where, ...) infinity may be meant.
_WEIGHED = {
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu", "Mul", "Div", "Add", "Sub"),
    *(f"{kind}Normalization" for kind in ("Batch", "Instance", "Layer", "Group")),
}
# Operators whose result may be of any size, whatever the size of what they read.
_GROWING = {
    *("ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "MaxUnpool"),
    *("RandomNormal", "RandomUniform", "CenterCropPad", "AffineGrid", "Col2Im"),
}
_FEW = 1024  # elements: no shape has more
_MOST_WORK = 1 << 20  # of the product of the inputs' sizes, which bounds what broadcasting makes of them
_BOUNDED = {  # operators whose result has no more elements than that product
    *("Abs", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Floor", "Ceil", "Cast", "Identity"),
    *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Where"),
    *("Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "ReduceProd"),
}


def check_model(model: ModelProto, *, source: str) -> None:
    """Look a model through; its bytes are not loaded by anything before. Raises InputError of one to three lines."""
    _check_opset(model, source=source)
    _check_functions(model, source=source)
    graphs = [model.graph, *(inner for node in all_nodes(model.graph) for inner in inner_graphs(node))]
    for node in nodes_of_model(model):
        if node.domain in ("", "ai.onnx") and node.op_type in _ENDLESS:
            raise InputError(
                f"{source}: {_called(node)} runs a graph inside the graph, as often as its input says.\n"
                "Networks without loops are supported. Export the network with the loop unrolled."
            )
    _check_tensors(model, source=source)
    for graph in graphs:
        _check_names(graph, source=source)
        _check_circles(graph, source=source)
    _check_made(model.graph, source=source)
    for graph in graphs:
        _check_numbers(graph, source=source)
    _check_sizes(model, source=source)


def _check_opset(model: ModelProto, *, source: str) -> None:
    """Refuse a model that does not say for which version of ONNX it is, or says one that is not supported."""
    newest = onnx.defs.onnx_opset_version()
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    supported = f"Opsets {_OLDEST_OPSET} to {newest} are supported."
    if not found:
        raise InputError(
            f"{source} does not say which opset (version of the ONNX operators) its nodes are of.\n"
            f"{supported} Export the network again with one of them."
        )
    if max(found) > newest:
        raise InputError(
            f"{source} is of opset {max(found)}, newer than onnx {onnx.__version__} knows.\n"
            f"{supported} Update onnx and onnxruntime, or export the network with opset 17."
        )
    if min(found) < _OLDEST_OPSET:
        raise InputError(
            f"{source} is of opset {min(found)}, which is too old. {supported}\n"
            f"""Convert it: python -c "import onnx, onnx.version_converter as c; """
            f"""onnx.save(c.convert_version(onnx.load('{source}'), 17), 'new.onnx')\""""
        )


def _check_functions(model: ModelProto, *, source: str) -> None:
    """Refuse functions that call themselves, or that are very many nodes once they are put in."""
    bodies = {(each.domain, each.name): each for each in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    left = dict(bodies)
    while left:  # each round sizes the functions whose calls are all sized
        ready = [key for key, body in left.items() if all((n.domain, n.op_type) not in left for n in all_nodes(body))]
        if not ready:
            raise InputError(f"{source}: its function {min(left)[1]!r} calls itself.\n{_AGAIN}")
        for key in ready:
            sizes[key] = sum(sizes.get((node.domain, node.op_type), 1) for node in all_nodes(left.pop(key)))
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in all_nodes(model.graph))
    if total > _MOST_NODES:
        raise InputError(
            f"{source} has {total} nodes once its functions are put in; {_MOST_NODES} are the most.\n{_AGAIN}"
        )


def _check_tensors(model: ModelProto, *, source: str) -> None:
    for tensor in all_tensors(model):
        flaw = flaw_of(tensor)
        if flaw is not None:
            raise InputError(f"{source}: the tensor {tensor.name!r} {flaw}.\n{_AGAIN}")
    for each in sparse_tensors(model):
        dims = list(each.dims)
        if any(size < 0 for size in dims) or bytes_of(each.values.data_type, dims) > MOST_BYTES:
            raise InputError(
                f"{source}: the sparse tensor {each.values.name!r} is {shape_text(dims)} when it is filled up; "
                f"{size_text(MOST_BYTES)} are the most.\n{_AGAIN}"
            )


def _check_names(graph: GraphProto, *, source: str) -> None:
    """Every tensor has one origin: an input, an initializer (which may be listed as an input too), or a node."""
    stored = [each.name for each in graph.initializer] + [each.values.name for each in graph.sparse_initializer]
    given = [value.name for value in graph.input]
    made = [name for node in graph.node for name in node.output if name]
    for names, what in ((stored, "initializers"), (given, "inputs"), (made, "outputs of nodes")):
        name, count = next(iter(Counter(names).most_common(1)), ("", 0))
        if count > 1:
            raise InputError(f"{source}: {count} {what} are called {name!r}; each tensor has one origin.\n{_AGAIN}")
    for others, what in ((stored, "an initializer"), (given, "an input")):
        both = sorted(set(made) & set(others))
        if both:
            raise InputError(f"{source}: {both[0]!r} is {what} and the output of a node, too.\n{_AGAIN}")


def _check_circles(graph: GraphProto, *, source: str) -> None:
    """No node waits for itself; in which order they stand does not matter to ONNX Runtime."""
    maker = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[int, list[int]] = {}
    waits = []
    for at, node in enumerate(graph.node):
        reads = set(node.input)
        for inner in inner_graphs(node):
            reads |= _reads_outside(inner)
        others = {maker[name] for name in reads if name in maker}
        waits.append(len(others))
        for other in others:
            readers.setdefault(other, []).append(at)
    free = [at for at, count in enumerate(waits) if not count]
    while free:
        for reader in readers.get(free.pop(), ()):
            waits[reader] -= 1
            if not waits[reader]:
                free.append(reader)
    stuck = [node for node, count in zip(graph.node, waits, strict=True) if count]
    if stuck:
        raise InputError(
            f"{source}: {len(stuck)} nodes, such as {_called(stuck[0])}, wait in a circle for each other's output.\n"
            f"{_AGAIN}"
        )


def _check_made(graph: GraphProto, *, source: str) -> None:
    """What nodes read, and what the graph gives, is made by something."""
    given = {each.name for values in (graph.initializer, graph.input) for each in values}
    made = {each.values.name for each in graph.sparse_initializer}.union(given, *(node.output for node in graph.node))
    for names, does in ((_reads_outside(graph), "a node reads"), ({each.name for each in graph.output}, "it gives")):
        if unmade := sorted(names - made - {""}):
            raise InputError(f"{source}: nothing makes {unmade[0]!r}, which {does}.\n{_AGAIN}")


def _reads_outside(graph: GraphProto) -> set[str]:
    """What the nodes of a graph read that the graph itself does not make."""
    reads: set[str] = set()
    own = {each.name for values in (graph.initializer, graph.input) for each in values}
    for node in graph.node:
        reads.update(node.input)
        own.update(node.output)
        for inner in inner_graphs(node):
            reads |= _reads_outside(inner)
    return reads - own


def _check_numbers(graph: GraphProto, *, source: str) -> None:
    constants = constants_of(graph)
    weights = {name for node in graph.node if node.op_type in _WEIGHED for name in node.input}
    for name, tensor in constants.items():
        values = values_of(tensor)
        if values is None or np.isfinite(values).all():
            continue
        nans, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nans or name in weights:
            raise InputError(
                f"{source}: the weights {name!r} hold {nans} NaN and {infinite} infinite of {values.size} values.\n"
                "The training diverged, or a conversion to half precision overflowed. Export an earlier checkpoint."
            )
    for node in graph.node:
        if node.op_type == "BatchNormalization" and len(node.input) > 4 and node.input[4] in constants:
            epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
            variance = values_of(constants[node.input[4]])
            bad = 0 if variance is None else int(np.sum(~(variance.astype(np.float64) + epsilon > 0)))
            if variance is not None and bad:
                raise InputError(
                    f"{source}: the variance {node.input[4]!r} of {_called(node)} is zero or negative (with epsilon "
                    f"{epsilon:.3g}) in {bad} of {variance.size} channels.\n"
                    "The file is damaged, or was never trained. Export the network again."
                )
        elif node.op_type == "Div" and len(node.input) > 1 and node.input[1] in constants:
            divisor = values_of(constants[node.input[1]])
            zeros = 0 if divisor is None else int((divisor == 0).sum())
            if divisor is not None and zeros:
                raise InputError(
                    f"{source}: {_called(node)} divides by {node.input[1]!r}, which is zero in {zeros} of "
                    f"{divisor.size} places.\nThe file is damaged, or a norm was exported before it was trained."
                )


def _called(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} (makes {next(iter(node.output), '')!r})"


def _check_sizes(model: ModelProto, *, source: str) -> None:
    """Refuse a model with a tensor beyond 2 GiB, or with more than that in what follows from constants alone.

    Open sizes (the batch) count as 1. Raises InputError that names the largest tensor.
    """
    bare = without_weights(model)
    made = [name for node in _constant_nodes(bare.graph, set()) for name in node.output if name]
    sizes: dict[str, int] = {}
    for value in (*_values(_inferred(bare, source=source)), *model.graph.output):
        tensor = value.type.tensor_type
        dims = [1 if dim.dim_value in OPEN else dim.dim_value for dim in tensor.shape.dim]
        if any(size < 0 for size in dims):
            raise InputError(
                f"{source}: the tensor {value.name!r} has the negative size {min(dims)} ({shape_text(dims)}).\n"
                "Either a size was left out or it overflows. Export the network again, with fixed sizes."
            )
        sizes[value.name] = bytes_of(tensor.elem_type, dims)
        if sizes[value.name] > MOST_BYTES:
            raise InputError(
                f"{source}: the tensor {value.name!r} ({shape_text(dims)}) takes {size_text(sizes[value.name])}; "
                f"{size_text(MOST_BYTES)} are the most.\n"
                "The file is damaged, or made for much larger input. Export the network with a smaller input or batch."
            )
    folded = sum(sizes.get(name, 0) for name in made)
    if folded > MOST_BYTES:
        raise InputError(
            f"{source}: {size_text(folded)} follow from its constants alone; {size_text(MOST_BYTES)} are the most.\n"
            "They would be computed as soon as it is loaded. Export the network again, without such constants."
        )


def _inferred(bare: ModelProto, *, source: str) -> GraphProto:
    """Return a graph that tells all sizes that can be told. May work out constants in `bare`."""
    before = onnx.ModelProto()
    before.CopyFrom(bare)
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
        if _open_growth(before.graph, graph) is not None:
            _compute_constants(bare)
            graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception as cause:  # RuntimeError and InferenceError; a node that does not fit only stays without a size
        raise InputError(
            f"{source} does not fit together: {' '.join(str(cause).split())[:200]}.\nExport the network again."
        ) from cause
    node = _open_growth(before.graph, graph)
    if node is not None:
        raise InputError(
            f"{source}: how large {node.output[0]!r} gets, which {node.op_type} {node.name!r} makes of constants, "
            "cannot be told before it is made.\nExport the network again, with fixed sizes."
        )
    return graph


def _open_growth(graph: GraphProto, inferred: GraphProto) -> NodeProto | None:
    """Return a node that makes a tensor of any size from constants alone, and which size is not known; or None."""
    told = {value.name for value in _values(inferred) if _is_told(value.type.tensor_type)}
    told |= {tensor.name for tensor in inferred.initializer}
    found = (node for node in _constant_nodes(graph, set()) if node.op_type in _GROWING)
    return next((node for node in found if not told.issuperset(node.output)), None)


def _is_told(tensor: TypeProto.Tensor) -> bool:
    return tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim)


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    """Every value of a graph and of the graphs inside it that has a tensor type."""
    for values in (graph.input, graph.value_info, graph.output):
        for value in values:
            if value.type.HasField("tensor_type"):
                yield value
    for inner in (inner for node in graph.node for inner in inner_graphs(node)):
        yield from _values(inner)


def _constant_nodes(graph: GraphProto, outer: set[str]) -> Iterator[NodeProto]:
    """The nodes, those of graphs inside too, that no input has a part in; an unsorted graph only gives fewer."""
    known = outer | {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from _constant_nodes(inner, known)
        if known.issuperset(name for name in node.input if name):
            known.update(node.output)
            yield node


def _compute_constants(model: ModelProto) -> None:
    """Replace in place every node that makes a small tensor of small constants by what it makes.

    Exporters write `expand` as half a dozen nodes that end in a shape: ConstantOfShape, Mul, Equal, Where. Shape
    inference of onnx follows few of them, ONNX Runtime computes all of them as it loads.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    known = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= _FEW
    }
    kept = []
    for node in model.graph.node:
        made = small_constant(node, known, opsets)
        if made is None:
            kept.append(node)
            continue
        known[node.output[0]] = made
        model.graph.initializer.append(onnx.numpy_helper.from_array(made, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def small_constant(node: NodeProto, known: Mapping[str, NDArray[Any]], opsets: dict[str, int]) -> NDArray[Any] | None:
    """Return what a node makes of known constants, None where that is not known or may be large."""
    from onnx.reference import ReferenceEvaluator  # late: it takes as long to import as all the rest

    if len(node.output) != 1 or not _is_small(node, known):
        return None
    try:
        with np.errstate(all="ignore"):
            made: Any = ReferenceEvaluator(node, opsets=opsets).run(
                None, {name: known[name] for name in node.input if name}
            )
    except Exception:  # whatever it raises on a node that does not fit: then its result stays open
        return None
    return made[0] if made[0].size <= _FEW else None


def _is_small(node: NodeProto, known: Mapping[str, NDArray[Any]]) -> bool:
    """Tell whether a node can be computed here at little cost."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Constant":  # its value has been looked at: it holds what it claims
        return all(math.prod(attribute.t.dims) <= _FEW for attribute in node.attribute)
    if not all(name in known for name in node.input if name):
        return False
    if node.op_type == "Range":
        start, limit, delta = (float(known[name].item()) for name in node.input)
        return delta != 0 and (limit - start) / delta <= _FEW
    if node.op_type == "ConstantOfShape":
        sizes = [int(size) for size in known[node.input[0]].ravel()]
        return all(size >= 0 for size in sizes) and math.prod(sizes) <= _FEW
    return node.op_type in _BOUNDED and math.prod(known[name].size for name in node.input if name) <= _MOST_WORK


def check_editable(model: ModelProto, *, source: str, branches: bool = False) -> None:
    """Refuse a graph that the folds and the quantiser do not work on, and one that the ONNX checker objects to.

    They take a graph of ONNX's own operators, without functions and, unless `branches`, without graphs inside it.
    Raises InputError.
    """
    if model.functions:
        names = sorted({function.name for function in model.functions})
        raise InputError(
            f"{source} has {len(model.functions)} functions of its own ({_some(names)}).\n"
            f"`msn-deploy export {source} --out plain.onnx` puts them in."
        )
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain not in _DOMAINS})
    if foreign:
        raise InputError(
            f"{source} has operators that are not ONNX's: {_some(foreign)}.\n"
            "Export the network without that extension, from operators of ONNX alone."
        )
    for node in model.graph.node:
        if not branches and any(inner_graphs(node)):
            raise InputError(
                f"{source}: {node.op_type} {node.name!r} holds a graph inside the graph: the network branches or "
                "loops, and ranges of what runs only sometimes are not measured.\nGive the part without it."
            )
    check_valid(model, source=source)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_valid(model: ModelProto, *, source: str) -> None:
    """Run the ONNX checker with shape inference; InputError with its first line if it objects."""
    try:
        onnx.checker.check_model(_checkable(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as cause:
        first = next((line for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise InputError(f"{source} is not valid ONNX: {first.strip()[:200]}") from cause


def _checkable(model: ModelProto) -> ModelProto:
    """Return a model with its large constants as inputs: the checker copies all that it is given, twice."""
    bare = without_weights(model)
    graph = bare.graph
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    hollow = {tensor.name: tensor for tensor in graph.initializer if flaw_of(tensor)}
    made = ((node.output[0], each.t) for node in graph.node for each in node.attribute if node.op_type == "Constant")
    hollow |= {name: tensor for name, tensor in made if tensor.dims and flaw_of(tensor)}
    known = {value.name for value in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in hollow.items()
        if name not in known
    )
    for held in (graph.initializer, graph.node):
        for at in reversed(range(len(held))):
            each: Any = held[at]
            if (each.name if isinstance(each, onnx.TensorProto) else each.output[0]) in hollow:
                del held[at]
    return bare
