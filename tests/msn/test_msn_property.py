"""Random layers of every kind against their plain definition, written with autograd alone, and against their fold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fold_cases import loosen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from msn_deploy import msn
from msn_deploy.msn import centring, fold

RANKS = {"Linear": 0, **{f"{kind}{rank}d": rank for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)}}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
EXACT, SINGLE, FOLDED = 1e-9, 1e-4, 1e-12
FLOOR = 0.1  # inputs and weights are of the order of 1: what is far smaller than this is cancelled, and rounding
MANY = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@dataclass(frozen=True)
class Case:
    """A layer, an input that fits it, and how long it is trained."""

    torch_name: str
    norm: str
    shape: dict[str, Any]  # constructor arguments of the torch twin, without bias
    bias: bool
    input_shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    weight_last: bool = False  # whether its channels come last in memory
    input_last: bool = False
    steps: int = 1
    seed: int = 0

    @property
    def channel_dim(self) -> int:
        return len(self.input_shape) - 1 if self.torch_name == "Linear" else 1

    @property
    def is_transposed(self) -> bool:
        return "Transpose" in self.torch_name

    def twin(self, *, bias: bool = False) -> nn.Module:
        made: nn.Module = getattr(nn, self.torch_name)(**self.shape, bias=bias, dtype=torch.float64)
        return made

    def layer(self, dtype: torch.dtype) -> nn.Module:
        """The layer with nothing neutral: every size is in 0.3 to 0.7 or in 1.3 to 1.7, of either sign."""
        torch.manual_seed(self.seed)
        kind = getattr(msn, self.norm + self.torch_name)
        layer: nn.Module = kind(**self.shape, bias=self.bias, **self.options, dtype=dtype)
        with torch.no_grad():
            for name in ("weight", "gain", "shift", "bias", "running_mean"):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    sign = torch.where(torch.rand(tensor.shape) < 0.3, -1.0, 1.0)
                    size = torch.where(torch.rand(tensor.shape) < 0.5, 0.3, 1.3) + torch.rand(tensor.shape) * 0.4
                    tensor.copy_(sign * size)
        return layer.to(memory_format=LAST[layer.weight.dim()]) if self.weight_last else layer

    def input(self, step: int, dtype: torch.dtype) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed + step)
        x = (torch.randn(self.input_shape, generator=rng) * 1.5 + 0.7).to(dtype)
        return x.contiguous(memory_format=LAST[x.dim()]) if self.input_last else x


def _per_dim(draw: Any, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(rank))


@st.composite
def torch_shapes(draw: Any, torch_name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Draw the constructor arguments of a torch layer, and the shape of an input that fits."""
    batch, rank = draw(st.sampled_from([1, 2, 3, 8])), RANKS[torch_name]
    if not rank:
        shape = {"in_features": draw(st.integers(1, 5)), "out_features": draw(st.integers(1, 6))}
        return shape, (batch, *_per_dim(draw, draw(st.integers(0, 2)), 1, 3), shape["in_features"])
    transposed = "Transpose" in torch_name
    groups = draw(st.integers(1, 3))
    inputs = groups * draw(st.sampled_from([1, 1, 2]))  # one each makes it depthwise
    kernel, stride, dilation = (_per_dim(draw, rank, 1, high) for high in (3, 3, 2))
    mode = "zeros" if transposed else draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding: Any = _per_dim(draw, rank, 0, 2)
    written: Any = "tuple" if transposed else draw(st.sampled_from(["tuple", "same", "valid"]))
    if written == "same":
        stride = (1,) * rank
    if draw(st.booleans()):  # ints in the place of tuples
        kernel, stride, dilation, padding = (each[:1] * rank for each in (kernel, stride, dilation, padding))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    ends = {"tuple": padding, "same": [(each + 1) // 2 for each in reach], "valid": [0] * rank}[written]
    shape = {
        "in_channels": inputs,
        "out_channels": groups * draw(st.integers(1, 3)),
        "groups": groups,
        "padding_mode": mode,
    }
    sizes, output_padding = [], []
    for at in range(rank):
        if transposed:
            output_padding.append(draw(st.integers(0, max(stride[at], dilation[at]) - 1)))
            grown = reach[at] + 1 + output_padding[at] - 2 * ends[at]  # of an input of size 1
            least = 1 if grown >= 1 else 1 - (grown - 1) // stride[at]
        else:
            least = 1 if written == "same" else max(1, reach[at] + 1 - 2 * ends[at])
            least = max(least, ends[at] + 1 if mode == "reflect" else ends[at] if mode == "circular" else 1)
        sizes.append(least + draw(st.integers(0, 2)))
    for name, each in (("kernel_size", kernel), ("stride", stride), ("dilation", dilation), ("padding", padding)):
        shape[name] = each[0] if len(set(each)) == 1 else each
    if written != "tuple":
        shape["padding"] = written
    if transposed:
        shape["output_padding"] = tuple(output_padding)
    return shape, (batch, inputs, *sizes)


@st.composite
def cases(draw: Any) -> Case:
    norm, torch_name = draw(st.sampled_from(["MSN", "MSN", "SN"])), draw(st.sampled_from(list(RANKS)))
    shape, input_shape = draw(torch_shapes(torch_name))
    options: dict[str, Any] = {"power_iterations": draw(st.integers(1, 3))}
    if norm == "MSN":
        options |= {"affine": draw(st.booleans()), "momentum": draw(st.sampled_from([None, 0.0, 0.1, 0.35, 1.0]))}
    return Case(
        torch_name=torch_name,
        norm=norm,
        shape=shape,
        bias=draw(st.booleans()),
        input_shape=input_shape,
        options=options,
        weight_last=RANKS[torch_name] > 1 and draw(st.booleans()),
        input_last=RANKS[torch_name] > 1 and draw(st.booleans()),
        steps=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 10_000)),
    )


@st.composite
def late_cases(draw: Any) -> Case:
    """Draw a convolution whose weight is larger than its output, which then is what is divided by sigma."""
    rank, groups = draw(st.sampled_from([1, 2, 2, 3])), draw(st.integers(1, 2))
    kernel, dilation = _per_dim(draw, rank, 2, 3), _per_dim(draw, rank, 1, 2)
    shape = {
        "in_channels": groups * draw(st.integers(2, 6)),
        "out_channels": groups * draw(st.integers(1, 4)),
        "groups": groups,
        "kernel_size": kernel,
        "stride": _per_dim(draw, rank, 1, 2),
        "dilation": dilation,
    }
    sizes = [d * (k - 1) + 1 + draw(st.integers(0, 2)) for d, k in zip(dilation, kernel, strict=True)]
    return Case(
        torch_name=f"Conv{rank}d",
        norm="MSN",
        shape=shape,
        bias=draw(st.booleans()),
        input_shape=(1, shape["in_channels"], *sizes),
        options={"power_iterations": 1, "affine": False, "momentum": 0.1},
        weight_last=rank > 1 and draw(st.booleans()),
        input_last=rank > 1 and draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
    )


class Definition:
    """The layer as the paper and the README have it, in float64, with nothing of the package in it."""

    def __init__(self, case: Case, layer: nn.Module) -> None:
        self.case, self.twin = case, case.twin()
        self.leaves = {name: each.detach().double().clone().requires_grad_() for name, each in layer.named_parameters()}
        self.buffers = {name: each.clone() for name, each in layer.named_buffers()}
        self.buffers = {name: b.double() if b.is_floating_point() else b for name, b in self.buffers.items()}

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        weight, buffers = self.leaves["weight"], self.buffers
        matrix = (weight.transpose(0, 1) if self.case.is_transposed else weight).flatten(1)
        if training:
            with torch.no_grad():
                for _ in range(self.case.options["power_iterations"]):
                    buffers["v"] = matrix.T @ buffers["u"]
                    buffers["v"] = buffers["v"] / buffers["v"].norm()
                    buffers["u"] = matrix @ buffers["v"]
                    buffers["u"] = buffers["u"] / buffers["u"].norm()
        sigma = buffers["u"] @ matrix @ buffers["v"]
        y = functional_call(self.twin, {"weight": weight / sigma}, (x,))
        dims = [dim for dim in range(y.dim()) if dim != self.case.channel_dim]
        view = [1 if dim in dims else y.shape[dim] for dim in range(y.dim())]
        if self.case.norm == "SN":
            return y + self.leaves["bias"].view(view) if "bias" in self.leaves else y
        mean = y.mean(dims) if training else buffers["running_mean"]
        y = y - mean.view(view)
        if "gain" in self.leaves:
            y = self.leaves["gain"].view(view) * y
        if "shift" in self.leaves:
            y = y + self.leaves["shift"].view(view)
        if training:
            buffers["num_batches_tracked"] = buffers["num_batches_tracked"] + 1
            momentum = self.case.options["momentum"]
            part = 1 / int(buffers["num_batches_tracked"]) if momentum is None else momentum
            buffers["running_mean"] = (1 - part) * buffers["running_mean"] + part * mean.detach()
        return y


def assert_near(got: Tensor, wanted: Tensor, within: float, what: str) -> None:
    scale = max(wanted.abs().max().item(), FLOOR)
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=within, atol=within * scale, msg=lambda text: f"{what}: {text}"
    )


def compare(case: Case, dtype: torch.dtype = torch.float64, within: float = EXACT) -> None:
    """Train a layer and its definition side by side, then evaluate both. Raises AssertionError where they part."""
    layer = case.layer(dtype)
    definition = Definition(case, layer)
    asked = {"weight": True, "gain": case.options.get("affine"), "shift" if case.norm == "MSN" else "bias": case.bias}
    assert dict(layer.named_parameters()).keys() == {name for name, there in asked.items() if there}
    for step in range(case.steps + 1):
        training = step < case.steps
        layer.train(training)
        ours = case.input(step, dtype).requires_grad_()
        theirs = ours.detach().double().requires_grad_()
        got, wanted = layer(ours), definition(theirs, training=training)
        assert got.dtype == dtype
        assert_near(got.detach(), wanted.detach(), within, "output")
        for name, buffer in layer.named_buffers():
            assert_near(buffer, definition.buffers[name], within, name)
        assert {name for name, _ in layer.named_buffers()} == definition.buffers.keys()

        rng = torch.Generator().manual_seed(case.seed + 77 + step)
        # As the output lies, which is what a layer behind it would hand back.
        upstream = torch.empty_like(got).copy_(torch.randn(wanted.shape, generator=rng) + 0.4)
        leaves = definition.leaves
        found = torch.autograd.grad(got, [ours, *layer.parameters()], upstream, allow_unused=True)
        right = torch.autograd.grad(wanted, [theirs, *leaves.values()], upstream.double())
        for name, mine, grad in zip(["input", *leaves], found, right, strict=True):
            assert mine is not None, f"no gradient of {name}"
            assert_near(mine, grad, within, f"gradient of {name}")
        with torch.no_grad():  # the next step sees other weights
            for leaf, parameter in zip(leaves.values(), layer.parameters(), strict=True):
                change = 0.9 + 0.2 * torch.rand(leaf.shape, generator=rng)
                leaf.mul_(change)
                parameter.mul_(change)


@MANY
@given(case=cases())
def test_any_layer_is_its_definition(case: Case) -> None:
    compare(case)


@MANY
@given(case=cases())
def test_any_layer_in_float32_is_near_its_definition(case: Case) -> None:
    compare(case, torch.float32, SINGLE)


@settings(MANY, max_examples=100)
@given(case=late_cases())
def test_a_layer_that_divides_its_output_is_its_definition_however_both_lie(case: Case) -> None:
    compare(case, torch.float32, SINGLE)


@MANY
@given(case=cases())
def test_any_layer_folds_exactly(case: Case) -> None:
    layer = case.layer(torch.float64)
    for step in range(case.steps):
        layer(case.input(step, torch.float64))
    _assert_folds(layer.eval(), case.input(9, torch.float64), case.torch_name)


@MANY
@given(data=st.data(), torch_name=st.sampled_from(list(RANKS)), bias=st.booleans(), seed=st.integers(0, 1000))
def test_any_layer_before_a_batch_norm_folds_exactly(
    data: st.DataObject, torch_name: str, bias: bool, seed: int
) -> None:
    shape, input_shape = data.draw(torch_shapes(torch_name))
    if torch_name == "Linear":  # where a batch norm takes its channels from dim 1
        input_shape = (input_shape[0], input_shape[-1])
    torch.manual_seed(seed)
    case = Case(torch_name=torch_name, norm="", shape=shape, bias=bias, input_shape=input_shape, seed=seed)
    channels = shape["out_features"] if torch_name == "Linear" else shape["out_channels"]
    norm = getattr(nn, f"BatchNorm{max(RANKS[torch_name], 1)}d")(channels, affine=data.draw(st.booleans()))
    model = loosen(nn.Sequential(case.twin(bias=bias), norm), seed=seed)
    _assert_folds(model, case.input(0, torch.float64), "Sequential")


def _assert_folds(model: nn.Module, x: Tensor, kind: str) -> None:
    folded = fold(model)
    assert type(folded).__name__ == kind
    assert not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in folded.modules())
    with torch.no_grad():
        assert_near(folded(x), model(x), FOLDED, "folded output")


TEETH = [
    Case("Conv2d", "MSN", {"in_channels": 2, "out_channels": 3, "kernel_size": 2}, True, (2, 2, 4, 3)),
    Case("ConvTranspose1d", "MSN", {"in_channels": 2, "out_channels": 3, "kernel_size": 2}, True, (2, 2, 3)),
    Case("Linear", "MSN", {"in_features": 4, "out_features": 3}, True, (3, 2, 4)),
]


def _without_the_gradient_of_the_mean(y: Tensor, shift: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    centred, mean = _CENTRE(y.detach().clone(), shift, **options)
    return centred + y - y.detach(), mean


def _without_the_shift(y: Tensor, shift: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    return _CENTRE(y, None, **options)


_CENTRE = centring.centre_


@pytest.mark.parametrize(
    ("broken", "said"), [(_without_the_gradient_of_the_mean, "gradient of input"), (_without_the_shift, "output")]
)
@pytest.mark.parametrize("case", TEETH, ids=lambda case: case.torch_name)
@pytest.mark.parametrize("affine", [False, True], ids=["msn", "msn-affine"])
def test_the_comparison_sees_a_broken_layer(
    case: Case, affine: bool, broken: Callable[..., Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(case, options={"affine": affine, "momentum": 0.1, "power_iterations": 1})
    compare(case)
    monkeypatch.setattr(centring, "centre_", broken)
    with pytest.raises(AssertionError, match=f"^{said}:"):
        compare(case)
