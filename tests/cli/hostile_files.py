"""ONNX files that are damaged, or made to crash, hang or fill the memory; each of a few hundred bytes."""

import io
import pickle
import zipfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HUGE = 2**62
BIG = np.array([1 << 16, 1 << 16])


def model(nodes=None, inits=None, *, shape=(1, 3, 8, 8), out=None, opset=17, functions=(), domains=()):
    """A network from x to y: a Conv and a Relu, or other nodes; inits are arrays or tensors."""
    if nodes is None:
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), helper.make_node("Relu", ["c"], ["y"])]
    inits = {"w": np.full((4, 3, 3, 3), 0.1, np.float32), **(inits or {})}
    tensors = [each if isinstance(each, TensorProto) else numpy_helper.from_array(each, n) for n, each in inits.items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out or [None] * 4)],
        tensors,
    )
    opsets = [*([helper.make_opsetid("", opset)] if opset else []), *(helper.make_opsetid(each, 1) for each in domains)]
    made = helper.make_model(graph, opset_imports=opsets or [helper.make_opsetid("", 17)], ir_version=8)
    if not opsets:
        del made.opset_import[:]
    made.functions.extend(functions)
    return made


def claims(dims, kind=TensorProto.FLOAT, **fields):
    """A tensor of those dims that holds nothing, or only what is given."""
    return TensorProto(name="w", data_type=kind, dims=dims, **fields)


def outside(location, **more):
    """A model that keeps the weights of its Conv in that file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 3, 3, 3), data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model(inits={"w": tensor})


def _weights(count, value):
    weights = np.full((4, 3, 3, 3), 0.1, np.float32)
    weights.ravel()[:count] = value
    return {"w": weights}


def _norm(variance, epsilon=1e-5):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node(
            "BatchNormalization", ["c", "gain", "shift", "mean", "var"], ["y"], name="bn", epsilon=epsilon
        ),
    ]
    neutral = {name: np.ones(4, np.float32) for name in ("gain", "shift", "mean")}
    return model(nodes, {**neutral, "var": np.array(variance, np.float32)})


def _grown(*grown, inits):
    """A Conv whose output has something added that the given nodes make (as g) from constants."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), *grown, helper.make_node("Add", ["c", "g"], ["y"])]
    return model(nodes, {name: np.array(value) for name, value in inits.items()})


def _of(op, inputs, **options):
    return helper.make_node(op, inputs, ["g"], name="grow", **options)


def expand_as_exported(side):
    """What exporters make of `expand(1, -1, side, side)`: -1 keeps a size."""
    nodes = [
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.int64))),
        helper.make_node("Mul", ["ones", "minus"], ["keep"]),
        helper.make_node("Equal", ["s", "keep"], ["kept"]),
        helper.make_node("Where", ["kept", "ones", "s"], ["t"]),
        _of("Expand", ["k", "t"]),
    ]
    kernel = np.ones((1, 4, 1, 1), np.float32)
    return _grown(*nodes, inits={"rank": [4], "minus": -1, "s": [1, -1, side, side], "k": kernel})


def _twice(model_, **changes):
    for name, value in changes.items():
        getattr(model_.graph, name).append(value)
    return model_


def _branch(op, *, grows=False):
    inside = [helper.make_node("Identity", ["c"], ["b"])]
    if grows:
        inside = [helper.make_node("CumSum", ["s", "z"], ["t"]), helper.make_node("ConstantOfShape", ["t"], ["b"])]
    inner = helper.make_graph(
        inside,
        "inner",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [None] * 4)],
    )
    conv = helper.make_node("Conv", ["x", "w"], ["c"])
    if op == "If":
        branch = helper.make_node("If", ["flag"], ["y"], name="if", then_branch=inner, else_branch=inner)
        return model([conv, branch], {"flag": np.array(True), "s": np.full(4, 1 << 14), "z": np.array(0)})
    inner.input.extend(
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ]
    )
    inner.node.insert(0, helper.make_node("Identity", ["go"], ["on"]))
    inner.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    inner.output[1].name = inner.node[1].output[0] = "b"
    loop = helper.make_node("Loop", ["count", "flag"], ["y"], name="loop", body=inner)
    return model([conv, loop], {"flag": np.array(True), "count": np.array(HUGE)})


def _function(name, *calls, domain="mine"):
    nodes = [helper.make_node(call, ["a"], ["b" if at else "c"], domain=domain) for at, call in enumerate(calls)]
    nodes = nodes or [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, opsets)


def _growing_function():
    shape = numpy_helper.from_array(BIG)
    nodes = [
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("ConstantOfShape", ["s"], ["g"]),
        helper.make_node("ReduceMax", ["g"], ["m"]),
        helper.make_node("Add", ["a", "m"], ["b"]),
    ]
    return helper.make_function("mine", "grow", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])


def _call(name, *functions):
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node(name, ["c"], ["y"], domain="mine")]
    return model(nodes, functions=functions, domains=["mine"])


def _circle():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Add", ["c", "r"], ["a"], name="add"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Relu", ["r"], ["y"], name="last"),
    ]
    return model(nodes)


def _foreign():
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Swish", ["c"], ["y"], domain="org.own")]
    return model(nodes, domains=["org.own"])


def _sparse():
    made = model()
    values = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=(1,), float_data=[1.0])
    indices = TensorProto(data_type=TensorProto.INT64, dims=(1,), int64_data=[3])
    made.graph.sparse_initializer.add(values=values, indices=indices, dims=(1 << 20, 1 << 20))
    return made


def _zip():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return content.getvalue()


def _conv(name="conv"):
    return helper.make_node("Conv", ["x", "w"], ["c"], name=name)


# name: (file, words of the message of every command)
HOSTILE = {
    # what a tensor claims and does not hold
    "claims_2_gb": (model(inits={"w": claims((1 << 19, 1 << 10))}), "'w' 524288x1024 536870912 0"),
    "claims_more": (model(inits={"w": claims((1 << 20, 1 << 10))}), "'w' 1048576x1024 4 GiB 2 GiB"),
    "claims_2_62": (model(inits={"w": claims((HUGE, HUGE))}), f"'w' {HUGE}x{HUGE} 2 GiB"),
    "claims_negative": (model(inits={"w": claims((4, -3, 3, 3))}), "'w' negative -3 4x-3x3x3"),
    "claims_raw": (model(inits={"w": claims((4, 3, 3, 3), raw_data=bytes(400))}), "'w' 4x3x3x3 432 bytes 400"),
    "claims_typed": (model(inits={"w": claims((4, 3, 3, 3), float_data=[1.0] * 5)}), "'w' 4x3x3x3 108 numbers 5"),
    "claims_int4": (model(inits={"w": claims((5,), TensorProto.INT4, raw_data=bytes(2))}), "'w' 5 3 bytes 2"),
    "type_99": (model(inits={"w": claims((1,), 99)}), "'w' type 99"),
    "sparse": (_sparse(), "sparse 's' 1048576x1048576 2 GiB"),
    # what grows on the way
    "input": (model(shape=(1, 3, 50000, 50000)), "'x' 1x3x50000x50000 27.9 GiB 2 GiB"),
    "input_2_62": (model(shape=(1, HUGE, HUGE, 8)), f"'x' {HUGE} 2 GiB"),
    "constant_of_shape": (_grown(_of("ConstantOfShape", ["s"]), inits={"s": BIG}), "'g' 65536x65536 16 GiB"),
    "constant_2_62": (_grown(_of("ConstantOfShape", ["s"]), inits={"s": [HUGE, 4]}), f"'g' {HUGE}x4"),
    "constant_negative": (_grown(_of("ConstantOfShape", ["s"]), inits={"s": [-4, 4]}), "negative"),
    "computed_shape": (
        _grown(helper.make_node("Mul", ["s", "s"], ["t"]), _of("ConstantOfShape", ["t"]), inits={"s": [512, 512]}),
        "'g' 262144x262144 256 GiB",
    ),
    "computed_expand": (expand_as_exported(1 << 16), "'g' 1x4x65536x65536 64 GiB"),
    "untold_shape": (
        _grown(helper.make_node("CumSum", ["s", "a"], ["t"]), _of("ConstantOfShape", ["t"]), inits={"s": BIG, "a": 0}),
        "'g' ConstantOfShape 'grow' cannot be told",
    ),
    "inside_a_function": (_call("grow", _growing_function()), "65536x65536 16 GiB 2 GiB"),
    "inside_a_branch": (_branch("If", grows=True), "'b' ConstantOfShape cannot be told"),
    "expand": (_grown(_of("Expand", ["one", "s"]), inits={"one": np.float32(1), "s": BIG}), "'g' 16 GiB"),
    "tile": (_grown(_of("Tile", ["w", "s"]), inits={"s": [1, 1, 1 << 15, 1 << 15]}), "'g' 4x3x98304x98304"),
    "resize": (
        _grown(
            _of("Resize", ["c", "", "s"]),
            inits={"s": np.array([1, 1, 1e4, 1e4], np.float32)},
        ),
        "'g' 1x4x60000x60000 53.6 GiB",
    ),
    "pad": (_grown(_of("Pad", ["c", "s"]), inits={"s": [0, 0, 0, 0, 0, 0, 1 << 16, 1 << 16]}), "'g' 1x4x65542x65542"),
    "range": (_grown(_of("Range", ["a", "b", "d"]), inits={"a": 0, "b": 1 << 40, "d": 1}), "'g' 1099511627776"),
    "many_constants": (
        model(
            [
                _conv(),
                *(helper.make_node("ConstantOfShape", ["s"], [f"k{at}"]) for at in range(8)),
                helper.make_node("Sum", [f"k{at}" for at in range(8)], ["k"]),
                helper.make_node("Add", ["c", "k"], ["y"]),
            ],
            {"s": np.array([1, 1, 1 << 14, 1 << 14])},
        ),
        "9 GiB constants alone 2 GiB",
    ),
    "loop": (_branch("Loop"), "Loop 'loop' loops"),
    "functions_that_double": (
        _call("f30", _function("f0"), *(_function(f"f{at}", f"f{at - 1}", f"f{at - 1}") for at in range(1, 31))),
        f"{2**30 + 1} nodes 100000",
    ),
    "functions_that_circle": (_call("f", _function("f", "g"), _function("g", "f")), "'f' calls itself"),
    # a graph that is none
    "circle": (_circle(), "3 nodes Add 'add' circle"),
    "two_nodes_of_one_name": (_twice(model(), node=helper.make_node("Relu", ["c"], ["y"])), "2 outputs of nodes 'y'"),
    "reads_what_is_not_there": (_twice(model(), node=helper.make_node("Relu", ["gone"], ["z"])), "'gone' node reads"),
    "gives_what_is_not_there": (
        _twice(model(), output=helper.make_tensor_value_info("gone", TensorProto.FLOAT, [1])),
        "'gone' it gives",
    ),
    "two_initializers": (_twice(model(), initializer=claims((1,), float_data=[1.0])), "2 initializers 'w'"),
    "two_inputs": (_twice(model(), input=model().graph.input[0]), "2 inputs 'x'"),
    "initializer_as_output": (model(inits={"c": np.ones(1, np.float32)}), "'c' initializer output of a node"),
    "input_as_output": (_twice(model(), node=helper.make_node("Relu", ["c"], ["x"])), "'x' input output of a node"),
    # numbers
    "nan": (model(inits=_weights(5, np.nan)), "'w' 5 NaN 0 infinite 108"),
    "infinite": (model(inits=_weights(7, -np.inf)), "'w' 0 NaN 7 infinite 108"),
    "nan_constant": (
        model([helper.make_node("Constant", [], ["k"], value=claims((2,), float_data=[np.nan] * 2)), _conv(),
               helper.make_node("PRelu", ["c", "k"], ["y"])]),
        "'k' 2 NaN 2",
    ),
    "variance_negative": (_norm([1, -1, -2, 1]), "'var' 'bn' 2 of 4"),
    "variance_zero": (_norm([1, 0, 1, 1], epsilon=0.0), "'var' 'bn' zero 1 of 4"),
    "sigma_zero": (
        model([_conv(), helper.make_node("Div", ["c", "sigma"], ["y"], name="by")], {"sigma": np.zeros(1, np.float32)}),
        "Div 'by' 'sigma' 1 of 1",
    ),
    # versions and extensions
    "opset_7": (model(opset=7), "opset 7 9 to convert_version"),
    "opset_99": (model(opset=99), "opset 99 9 to Update"),
    "no_opset": (model(opset=None), "opset 9 to"),
    # other files
    "text": (b"These are no weights.\n" * 20, "text do not parse"),
    "pickle": (pickle.dumps({"weight": [1.0] * 50}, protocol=4), "pickle never opened FILE.py:FACTORY"),
    "zip": (_zip(), "zip archive .pt"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "cut_off": (model().SerializeToString()[:-40], "cut off"),
}  # fmt: skip
# What export refuses for what it does to a graph, while other commands leave it to ONNX Runtime or TensorRT.
EXPORT_REFUSES = {
    "foreign_operator": (_foreign(), "org.own:Swish"),
    "unknown_operator": (model([_conv(), helper.make_node("Frobnicate", ["c"], ["y"])]), "Frobnicate"),
}

# What `calibrate` refuses and export takes: it puts functions in, and keeps branches with their norms.
CALIBRATE_REFUSES = {
    "branches": (_branch("If"), "If 'if' graph inside"),
    "functions": (_call("f", _function("f")), "1 functions (f) msn-deploy export --out plain.onnx"),
}


def write(folder, files):
    """Write each file as NAME.onnx."""
    for name, (content, _) in files.items():
        content = content if isinstance(content, bytes) else content.SerializeToString()
        assert len(content) < 20_000
        (folder / f"{name}.onnx").write_bytes(content)
    onnx.checker.check_model(model(), full_check=True)  # what all of them would be without their flaw
