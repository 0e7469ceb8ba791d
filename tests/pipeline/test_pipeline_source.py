"""What people bring is exported as it is, or refused for the true reason."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from any_network import HEAD, INPUTS, NETWORKS, OUTPUTS, source
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from msn_deploy.cli.options import parse_input
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.model.feeds import example_of, random_feeds
from msn_deploy.pipeline.export import ExportReport, export_onnx


def exported(spec: Any, out: Path, inputs: list[str] = [], **options: Any) -> ExportReport:  # noqa: B006
    return export_onnx(spec, out, inputs=tuple(parse_input(each) for each in inputs), **options)


def loaded(spec: str) -> nn.Module:
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location("net", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return getattr(module, name)()


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path.read_bytes())


@pytest.mark.parametrize("name", NETWORKS)
def test_several_named_inputs_and_outputs_from_torch_and_from_the_onnx_file_of_it(name: str, tmp_path: Path) -> None:
    spec = source(tmp_path, NETWORKS[name])
    report = exported(spec, tmp_path / "a.onnx", INPUTS[name])
    assert [each.name for each in report.ladder[-1].outputs] == OUTPUTS[name]
    assert report.certificate is not None
    assert "BatchNormalization" not in {norm.operator for norm in report.certificate.kept}
    exported(spec, tmp_path / "raw.onnx", INPUTS[name], fold=False)
    sizes = INPUTS[name] if name == "ocr" else []
    again = exported(str(tmp_path / "raw.onnx"), tmp_path / "b.onnx", sizes)
    assert [each.name for each in again.ladder[-1].outputs] == OUTPUTS[name]
    given = [example_of(parse_input(each)) for each in INPUTS[name]]
    feeds = random_feeds([each.sized({"N": 3, "W": 96}) for each in given], seed=5)
    with torch.inference_mode():
        truth = loaded(spec)(*(torch.from_numpy(feeds[each.name]) for each in given))
    truth = list(truth.values()) if isinstance(truth, dict) else [truth] if isinstance(truth, torch.Tensor) else truth
    for path in ("a.onnx", "b.onnx"):
        for want, got in zip(truth, session(tmp_path / path).run(OUTPUTS[name], feeds), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
        nodes = onnx.load(str(tmp_path / path)).graph.node
        assert "BatchNormalization" not in {node.op_type for node in nodes}


def test_types_and_open_sizes_are_those_asked_for(tmp_path: Path) -> None:
    exported(source(tmp_path, NETWORKS["camera"]), tmp_path / "camera.onnx", INPUTS["camera"])
    given, (logits, mask) = (
        session(tmp_path / "camera.onnx").get_inputs()[0],
        session(tmp_path / "camera.onnx").get_outputs(),
    )
    assert (given.type, given.shape) == ("tensor(uint8)", [1, 48, 64, 3])
    assert (logits.type, mask.type) == ("tensor(float)", "tensor(int64)")
    exported(source(tmp_path, NETWORKS["ocr"]), tmp_path / "ocr.onnx", INPUTS["ocr"])
    assert session(tmp_path / "ocr.onnx").get_inputs()[0].shape == ["N", 3, 32, "W"]


NET = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.c = block(3, 8)\n"
FORWARD = "    def forward(self, x):\n        "


@pytest.mark.parametrize("returned", [
    "(y,)", "[y]", "{'out': y}", "OrderedDict(out=y)", "(y, None)", "(y, 3)", "((y,),)",
])  # fmt: skip
def test_one_tensor_in_a_container_is_one_output(tmp_path: Path, returned: str) -> None:
    body = f"{NET}{FORWARD}y = self.c(x)\n        return {returned}\n"
    report = exported(source(tmp_path, body), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert len(report.ladder[-1].outputs) == 1


@pytest.mark.parametrize("line", [
    "x = x.sub_(0.45).div_(0.22)", "x[:, 0] *= 3", "x.clamp_(-0.5, 0.5)", "x.mul_(2); x += 1",
])  # fmt: skip
def test_a_network_may_change_its_input_in_place(tmp_path: Path, line: str) -> None:
    body = f"{NET}{FORWARD}{line}\n        return self.c(x).amax((2, 3))\n"
    report = exported(source(tmp_path, body), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert all(each.passed for each in report.ladder)


def test_a_network_may_remember_the_shape_that_it_saw(tmp_path: Path) -> None:
    body = (
        f"{NET}        self.shape = None\n"
        f"{FORWARD}y = self.c(x)\n"
        "        if self.shape != y.shape:\n"
        "            self.grid, self.shape = torch.arange(y.shape[-1]).to(y) * 0.1, y.shape\n"
        "        return y + self.grid, y.mean((2, 3))\n"
    )
    report = exported(source(tmp_path, body), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert len(report.ladder[-1].outputs) == 2


@pytest.mark.parametrize("how", ["half", "bfloat16", "double"])
def test_a_network_in_another_precision_is_exported_in_float32(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = f"{NET}{FORWARD}return self.c(x)\n\n\ndef other():\n    return build().{how}()\n"
    spec = source(tmp_path, body).replace(":build", ":other")
    exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert "exported in float32" in caplog.text
    assert session(tmp_path / "m.onnx").get_inputs()[0].type == "tensor(float)"


def test_a_network_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    export_onnx(net, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    for name, each in net.state_dict().items():
        torch.testing.assert_close(each, before[name], rtol=0, atol=0)
    with pytest.raises(InputError, match="training mode"):
        export_onnx(net.train(), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))


@pytest.mark.parametrize(
    "line", ["F.dropout(self.c(x))", "self.c(x) + torch.randn(8, 1, 1)", "F.dropout2d(self.c(x), 0.3)"]
)
def test_a_network_that_is_random_in_evaluation_is_called_so(tmp_path: Path, line: str) -> None:
    spec = source(tmp_path, f"{NET}{FORWARD}return {line}\n")
    with pytest.raises(GateError, match="random in evaluation") as caught:
        exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("line", ["(self.c(x) - 5).log()", "self.c(x) / (x[:, :1] * 0)"])
def test_an_output_that_is_no_number_is_named(tmp_path: Path, line: str) -> None:
    spec = source(tmp_path, f"{NET}{FORWARD}y = {line}\n        return {{'depth': y, 'raw': x * 2}}\n")
    with pytest.raises(GateError, match="output depth are not finite"):
        exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))


@pytest.mark.parametrize(("line", "said"), [
    ("self.c(x).clamp(0.1, 2)", r"aten\.clamp"),
    ("self.c(x) if x.sum() > 0 else x", "data-dependent"),
    ("torch.linalg.svd(self.c(x))[0]", "linalg_svd"),
])  # fmt: skip
def test_torchs_own_error_is_told_by_its_cause(tmp_path: Path, line: str, said: str) -> None:
    spec = source(tmp_path, f"{NET}{FORWARD}return {line}\n")
    with pytest.raises(InputError, match=said) as caught:
        exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


# Options that the source has no use for


@pytest.fixture
def foreign(tmp_path: Path) -> Any:
    """Write an ONNX file: Conv, BatchNormalization, with sizes as given."""

    def write(sizes: list[int | str | None], opset: int = 15) -> str:
        rng = np.random.default_rng(1)
        constants = {"w": rng.standard_normal((4, 3, 3, 3)), "g": rng.uniform(0.5, 2, 4), "b": rng.standard_normal(4),
                     "m": rng.standard_normal(4), "v": rng.uniform(0.5, 2, 4)}  # fmt: skip
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
                helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [sizes[0], 4, None, None])],
            [numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
        return str(tmp_path / "foreign.onnx")

    return write


@pytest.mark.parametrize(("sizes", "options", "shape"), [
    (["n", 3, "h", "w"], {"input_shape": (2, 3, 8, 12)}, [2, 3, 8, 12]),
    (["n", 3, "h", "h"], {"input_shape": (1, 3, 8, 8)}, [1, 3, 8, 8]),
    ([None, 3, 8, 8], {"batch": 4}, [4, 3, 8, 8]),
    (["n", 3, 8, 8], {}, ["n", 3, 8, 8]),
    (["n", 3, 8, 8], {"dynamic_batch": True}, ["n", 3, 8, 8]),
    ([0, 3, 8, 8], {}, ["batch", 3, 8, 8]),
    ([-1, 3, 8, 8], {"batch": 2}, [2, 3, 8, 8]),
    ([0, 3, 0, -1], {"input_shape": (1, 3, 8, 12)}, [1, 3, 8, 12]),
    (["?", 3, "?", "?"], {"input_shape": (2, 3, 8, 12)}, [2, 3, 8, 12]),
    ([1, 3, 8, 8], {"batch": 1}, [1, 3, 8, 8]),
    (["n", 3, "h", "w"], {"inputs": (parse_input("x=n,3,h=8,w=12"),)}, ["n", 3, "h", "w"]),
])  # fmt: skip
def test_open_sizes_of_a_file_are_fixed_or_kept(
    foreign: Any, tmp_path: Path, sizes: list[Any], options: dict[str, Any], shape: list[Any]
) -> None:
    export_onnx(foreign(sizes), tmp_path / "m.onnx", **options)
    model = onnx.load(str(tmp_path / "m.onnx"))
    given = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert given == shape
    (output,) = session(tmp_path / "m.onnx").get_outputs()
    assert output.shape[0] == shape[0]
    if "h" not in shape:
        assert output.shape == [shape[0], 4, *shape[2:]]
    assert [node.op_type for node in model.graph.node] == ["Conv"]


@pytest.mark.parametrize(("sizes", "options", "said"), [
    ([1, 3, 8, 8], {"batch": 4}, "fixed batch of 1"),
    ([1, 3, 8, 8], {"dynamic_batch": True}, "fixed batch of 1"),
    ([1, 3, 8, 8], {"input_shape": (1, 3, 16, 16)}, "1,3,8,8"),
    (["n", 3, 8, 8], {"input_shape": (1, 3, 8)}, "does not fit"),
    (["n", 3, "h", "w"], {}, r"h, w[\s\S]*--input x=1,3,320,320"),
    (["n", 3, "h", "h"], {"input_shape": (1, 3, 8, 12)}, "8 and 12"),
    (["n", 3, 8, 8], {"inputs": (parse_input("y=1,3,8,8"),)}, "no input 'y'"),
    (["n", 3, 8, 8], {"inputs": (parse_input("x=1,3,8,8:uint8"),)}, "float32, not uint8"),
    (["n", 3, 8, 8], {"weights": Path("no_such_file.pt")}, "no_such_file.pt does not exist"),
])  # fmt: skip
def test_what_a_file_cannot_have_is_refused(
    foreign: Any, tmp_path: Path, sizes: list[Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        export_onnx(foreign(sizes), tmp_path / "m.onnx", **options)
    assert not (tmp_path / "m.onnx").exists()


def test_a_batch_is_the_batch_of_every_input(tmp_path: Path) -> None:
    spec = source(tmp_path, NETWORKS["stereo"])
    exported(spec, tmp_path / "4.onnx", INPUTS["stereo"], batch=4)
    assert [each.shape[0] for each in session(tmp_path / "4.onnx").get_inputs()] == [4, 4]
    exported(spec, tmp_path / "any.onnx", INPUTS["stereo"], dynamic_batch=True)
    assert [each.shape[0] for each in session(tmp_path / "any.onnx").get_inputs()] == ["batch", "batch"]
    feeds = random_feeds([example_of(parse_input(each)) for each in INPUTS["stereo"]])
    twice = {name: np.concatenate([each, each * 0.5, each]) for name, each in feeds.items()}
    one, three = (session(tmp_path / "any.onnx").run(["disparity"], each)[0] for each in (feeds, twice))
    np.testing.assert_allclose(three[[0, 2]], np.concatenate([one, one]), atol=1e-5)


@pytest.mark.parametrize(("options", "said"), [
    ({"input_shape": (1, 3, 64, 64)}, "takes no other"),
    ({"inputs": (parse_input("a=1,1,28,28"), parse_input("b=1,1,28,28"))}, "takes no other"),
    ({"weights": Path(__file__)}, "own weights"),
])  # fmt: skip
def test_a_checkpoint_has_its_size_and_weights(checkpoint: Path, tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        export_onnx(str(checkpoint), tmp_path / "m.onnx", **options)


def test_a_missing_input_is_named_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"right[\s\S]*--input left=\S+ --input right="):
        exported(source(tmp_path, NETWORKS["stereo"]), tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))


def test_stages_are_compared_on_data_that_a_network_needs(tmp_path: Path) -> None:
    body = (
        f"{NET}        self.table = nn.Embedding(500, 8)\n"
        "    def forward(self, x, kinds):\n"
        "        return self.c(x) + self.table(kinds - 400)[:, :, None, None]\n"
    )
    spec, rng = source(tmp_path, body), np.random.default_rng(2)
    inputs = ["x=2,3,8,8", "kinds=2:int64"]
    with pytest.raises(InputError, match="index"):
        exported(spec, tmp_path / "m.onnx", inputs)
    np.savez(
        tmp_path / "d.npz", x=rng.standard_normal((6, 3, 8, 8)).astype(np.float32), kinds=rng.integers(400, 900, 6)
    )
    report = exported(spec, tmp_path / "m.onnx", inputs, data=str(tmp_path / "d.npz"))
    assert report.ladder[-1].samples == 6
    assert report.certificate is not None
    assert report.certificate.inputs == ("data",)
    assert report.certificate.is_exact


def test_images_are_no_data_for_a_network_that_says_nothing_of_them(tmp_path: Path) -> None:
    spec = source(tmp_path, f"{NET}{FORWARD}return self.c(x)\n")
    with pytest.raises(InputError, match=r"\.npz"):
        exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8), data=str(tmp_path))


def test_open_sizes_are_tried_with_those_of_the_data(foreign: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.random.default_rng(3).standard_normal((5, 3, 8, 12)).astype(np.float32))
    report = export_onnx(foreign(["n", 3, "h", "w"]), tmp_path / "m.onnx", data=str(tmp_path / "d.npy"))
    assert report.ladder[-1].samples == 5
    assert session(tmp_path / "m.onnx").get_inputs()[0].shape == ["n", 3, "h", "w"]


def test_a_file_that_branches_on_its_input_keeps_its_norms(tmp_path: Path) -> None:
    def inner(name: str, factor: float) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        nodes = [helper.make_node("Mul", ["n", f"{name}_f"], [f"{name}_y"])]
        return helper.make_graph(nodes, name, [], [made], [numpy_helper.from_array(np.float32(factor), f"{name}_f")])

    rng = np.random.default_rng(4)
    constants = {
        "g": rng.uniform(0.5, 2, 3),
        "b": rng.standard_normal(3),
        "m": rng.standard_normal(3),
        "v": rng.uniform(0.5, 2, 3),
    }
    graph = helper.make_graph(
        [
            helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["n"]),
            helper.make_node("If", ["flag"], ["y"], then_branch=inner("a", 3), else_branch=inner("b", -2)),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "if.onnx").write_bytes(model.SerializeToString())
    report = export_onnx(str(tmp_path / "if.onnx"), tmp_path / "m.onnx")
    assert report.certificate is not None
    assert {norm.code for norm in report.certificate.norms} == {"CONTROL_FLOW"}
    assert report.operators == {"BatchNormalization": 1, "If": 1}
    feeds = {"x": rng.standard_normal((2, 3, 4)).astype(np.float32)}
    for flag in (True, False):
        before, after = (
            session(tmp_path / name).run(None, {**feeds, "flag": np.array(flag)})[0] for name in ("if.onnx", "m.onnx")
        )
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_a_network_that_loses_its_digits_is_held_against_its_own_rounding(tmp_path: Path) -> None:
    """Two sums of large numbers in two orders leave, of their difference, nothing but rounding."""
    body = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(512, 16, 1), nn.Conv2d(512, 16, 1)\n"
        "        self.b.weight.data, self.b.bias.data = self.a.weight.data.flip(1), self.a.bias.data\n"
        f"{FORWARD}large = 1e4 * x\n        return x[:, :16] + self.a(large) - self.b(large.flip(1))\n"
    )
    report = exported(source(tmp_path, body), tmp_path / "m.onnx", input_shape=(1, 512, 8, 8))
    assert all(each.passed for each in report.ladder)
    assert any("rounding" in each.limit for each in report.ladder)


def test_a_file_without_inputs_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, -3.0])
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=value)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    (tmp_path / "c.onnx").write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
    with pytest.raises(InputError, match="no input"):
        export_onnx(str(tmp_path / "c.onnx"), tmp_path / "m.onnx")


@pytest.mark.parametrize(("opset", "at_end"), [(12, False), (12, True), (17, True)])
def test_sequences_of_any_opset_are_exported_within_a_file_and_refused_at_its_end(
    tmp_path: Path, opset: int, at_end: bool
) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=1),
        helper.make_node("SequenceLength", ["s"], ["n"]),
    ]
    outputs = [helper.make_tensor_value_info("n", TensorProto.INT64, [])]
    if at_end:
        outputs.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])
    graph = helper.make_graph(nodes, "g", [given], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (tmp_path / "s.onnx").write_bytes(model.SerializeToString())
    if at_end:
        with pytest.raises(InputError, match="s is not a tensor but a sequence"):
            export_onnx(str(tmp_path / "s.onnx"), tmp_path / "m.onnx")
        return
    export_onnx(str(tmp_path / "s.onnx"), tmp_path / "m.onnx")
    assert session(tmp_path / "m.onnx").run(None, {"x": np.ones((2, 5), np.float32)})[0] == 5


def test_branches_over_sequences_crash_nothing(tmp_path: Path) -> None:
    net = nn.Sequential(nn.EmbeddingBag(10, 4, mode="sum"), nn.BatchNorm1d(4)).eval()
    with pytest.raises(InputError):
        exported(net, tmp_path / "m.onnx", ["input=2,3:int64"])


def test_a_file_may_be_called_anything_and_define_dataclasses(tmp_path: Path) -> None:
    body = (
        "@dataclass(frozen=True, slots=True)\nclass Options:\n    width: int = 8\n\n\n"
        f"{NET}        self.options = Options()\n{FORWARD}return self.c(x)[:, : self.options.width]\n"
    )
    source(tmp_path, f"from __future__ import annotations\n{HEAD}{body}"[0:0] or body)
    for stem in ("net", "json", "torch"):
        path = tmp_path / f"{stem}.py"
        path.write_text(f"from __future__ import annotations\n{HEAD}{body}", encoding="utf-8")
        exported(f"{path}:build", tmp_path / f"{stem}.onnx", input_shape=(1, 3, 8, 8), simplify=False)
        path.unlink()
    assert json.loads("1") == 1


@pytest.mark.parametrize(("inputs", "returned", "names"), [
    (["input=1,3,8,8"], "{'input': self.c(input), 'logits': -self.c(input)}", ["input_1", "logits"]),
    (["input=1,3,8,8"], "{'a.b': input * 2, 'a': {'b': self.c(input)}}", ["a.b", "a.b_1"]),
    (["logits=1,3,8,8"], "self.c(logits)", ["logits_1"]),
])  # fmt: skip
def test_outputs_may_be_called_like_inputs_and_like_one_another(
    tmp_path: Path, inputs: list[str], returned: str, names: list[str]
) -> None:
    body = f"{NET}    def forward(self, {inputs[0].partition('=')[0]}):\n        return {returned}\n"
    report = exported(source(tmp_path, body), tmp_path / "m.onnx", inputs, simplify=False)
    assert [each.name for each in report.ladder[-1].outputs] == names
    assert [each.name for each in session(tmp_path / "m.onnx").get_outputs()] == names


def test_complex_outputs_are_refused_with_what_to_return(tmp_path: Path) -> None:
    spec = source(tmp_path, f"{NET}{FORWARD}return torch.fft.rfft(self.c(x))\n")
    with pytest.raises(InputError, match="view_as_real"):
        exported(spec, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))


def test_a_network_in_memory_is_left_as_it_was(tmp_path: Path) -> None:
    class Counting(nn.Conv2d):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    net = Counting(3, 8, 3).eval()
    export_onnx(net, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8), simplify=False)
    assert net.calls == 0


def test_sizes_that_stay_open_are_tried_twice(foreign: Any, tmp_path: Path) -> None:
    path = foreign(["n", 3, "h", "w"])
    report = export_onnx(path, tmp_path / "m.onnx", inputs=(parse_input("x=n,3,h=8,w=12"),), simplify=False)
    assert report.parity_on == "33 random inputs"
