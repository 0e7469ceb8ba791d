"""Named arrays reach the parameters that they are meant for, however a network takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msn_deploy.core.errors import InputError
from msn_deploy.graph.calls import Call
from msn_deploy.graph.export import to_onnx
from msn_deploy.model.feeds import ExampleInput, fixed_input, random_feeds


@dataclass
class Frame:
    pixels: Tensor
    gain: Tensor


class Two(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


class Optional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> Tensor:
        y = x if mask is None else torch.where(mask, x, -x)
        return y if scale is None else y * scale


class Nested(nn.Module):
    def forward(self, pyramid: list[Tensor], state: dict[str, Any]) -> Tensor:
        return pyramid[0] + 3 * pyramid[1] - state["h"][0] * state["c"]


class OfADataclass(nn.Module):
    def forward(self, frame: Frame) -> Tensor:
        return frame.pixels * frame.gain


class Many(nn.Module):
    def forward(self, *parts: Tensor) -> Tensor:
        return parts[0] - 2 * parts[1] + 5 * parts[2]


class Camera(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return frames.permute(0, 3, 1, 2).float() / 255


CASES = [
    (Two, "left right", lambda f: f["left"] - 2 * f["right"]),
    (Optional, "x", lambda f: f["x"]),
    (Optional, "x scale", lambda f: f["x"] * f["scale"]),
    (Optional, "x mask:bool scale", lambda f: np.where(f["mask"], f["x"], -f["x"]) * f["scale"]),
    (Nested, "pyramid.0 pyramid.1 state.h.0 state.c",
     lambda f: f["pyramid.0"] + 3 * f["pyramid.1"] - f["state.h.0"] * f["state.c"]),
    (OfADataclass, "frame.pixels frame.gain", lambda f: f["frame.pixels"] * f["frame.gain"]),
    (Many, "a b c", lambda f: f["a"] - 2 * f["b"] + 5 * f["c"]),
    (Camera, "frames:uint8", lambda f: f["frames"].transpose(0, 3, 1, 2) / 255),
]  # fmt: skip


def specs_of(text: str) -> list[ExampleInput]:
    pairs = [each.partition(":") for each in text.split()]
    return [fixed_input(name, dtype or "float32", (2, 3, 4, 5)) for name, _, dtype in pairs]


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_each_array_reaches_its_parameter(kind: type[nn.Module], text: str, expected: Any) -> None:
    call = Call(kind(), specs_of(text))
    feeds = random_feeds(call.specs)
    np.testing.assert_allclose(call.run(kind(), feeds)["logits"], expected(feeds), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_each_becomes_an_input_of_the_graph(kind: type[nn.Module], text: str, expected: Any, dynamic: bool) -> None:
    import onnxruntime as ort

    specs = specs_of(text)
    made = to_onnx(kind().eval(), inputs=specs, optimize=False, opset=18, dynamic_batch=dynamic)
    assert [value.name for value in made.graph.input] == [spec.name for spec in specs]
    sizes = [value.type.tensor_type.shape.dim[0] for value in made.graph.input]
    assert {dim.HasField("dim_value") for dim in sizes} == {not dynamic}
    feeds = random_feeds(specs)
    got = ort.InferenceSession(made.SerializeToString()).run(["logits"], feeds)[0]
    np.testing.assert_allclose(got, expected(feeds), rtol=1e-5)


def test_the_only_input_may_be_called_input_whatever_the_parameter_is_called() -> None:
    feeds = {"input": np.full((1, 2), 7, np.float32)}
    assert Call(Optional(), [fixed_input("input", "float32", (1, 2))]).run(Optional(), feeds)["logits"].tolist() == [
        [7, 7]
    ]


@pytest.mark.parametrize(("kind", "text", "said"), [
    (Two, "input", r"right[\s\S]*--input left=\S+ --input right="),
    (Two, "left right depth", "no input 'depth'"),
    (Two, "left", "2 inputs"),
    (Nested, "pyramid pyramid.0 state.h", "one tensor and as several"),
    (Nested, "pyramid.0 pyramid.0 state.h", "twice"),
    (Nested, "pyramid.0 pyramid.0.1 state.h", "inside another"),
])  # fmt: skip
def test_what_forward_does_not_take_is_named(kind: type[nn.Module], text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Call(kind(), specs_of(text))


def test_a_network_writes_to_arrays_of_its_own() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sub_(0.45).div_(0.22)

    feeds = random_feeds([fixed_input("x", "float32", (2, 3))])
    before = feeds["x"].copy()
    call = Call(InPlace(), [fixed_input("x", "float32", (2, 3))])
    first, second = call.run(InPlace(), feeds)["logits"], call.run(InPlace(), feeds)["logits"]
    np.testing.assert_array_equal(feeds["x"], before)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_height_and_width_may_stay_open_under_their_names() -> None:
    import onnxruntime as ort

    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, nn.functional.interpolate(y, size=x.shape[2:], mode="nearest") - x[:, :1]

    given = ExampleInput(name="x", dtype="float32", shape=(1, 3, 32, 64), open=("batch", None, None, "width"))
    net = Sizes().eval()
    made = to_onnx(net, inputs=[given], optimize=False, opset=18)
    sizes = [dim.dim_param or dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, 32, "width"]
    feeds = random_feeds([given.sized({"batch": 3, "width": 40})])
    got = ort.InferenceSession(made.SerializeToString()).run(None, feeds)
    assert [each.shape for each in got] == [(3, 4, 16, 20), (3, 4, 32, 40)]
    for one, other in zip(got, Call(net, [given]).run(net, feeds).values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
