"""By how much can a network's output move when its input moves: bounds on its Lipschitz constant in evaluation.

From above, the largest factors of the operations are multiplied along the network; the sum of branches and their
concatenation have rules of their own (sum, root of the sum of squares). A convolution has two such factors:

  operator  its norm as a linear map of images of the size that it sees, zero padding included; found by power
            iteration, which comes from below and is within half a percent in the tests
  matrix    the largest singular value of its weight as a matrix (C_out, rest), which is what MSN and SN divide by,
            times the root of the number of windows that a pixel is in (9 for a 3x3 kernel of stride 1); an upper
            bound of the first (Tsuzuku et al., 2018, arXiv 1802.04034), and exact up to rounding

From below, the largest singular value of the Jacobian at given inputs: near them the output does move by that much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _MaxPoolNd

from msn_deploy.core.errors import FoldError
from msn_deploy.msn.fold import fold
from msn_deploy.msn.plain import fold_layers
from msn_deploy.msn.spectral import largest_singular_value

_ITERATIONS = 100  # of an operator's norm
_STEPS = 20  # of the Jacobian's
_LINEAR_MODULES = (
    *(_ConvNd, nn.Linear, _BatchNorm, nn.Upsample, nn.ZeroPad2d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_LINEAR = {"avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "interpolate", "pad", "mean"}
_CLOSER_MODULES = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.ReLU6, nn.Identity, nn.Flatten, nn.Dropout)
_CLOSER = {
    *("relu", "relu_", "tanh", "sigmoid", "dropout", "flatten", "view", "reshape", "squeeze", "unsqueeze"),
    *("permute", "transpose", "contiguous", "getitem"),
}
_Bound = tuple[float, float]  # by operator norms, and by those of matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """The factors of one convolution or linear layer, see the module. name: in the network."""

    name: str
    operator: float
    matrix: float
    """Without the root, which is the next."""
    overlap: float
    """Root of the number of windows that a pixel is in at most; 1 for a linear layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lipschitz:
    """Bounds on a Lipschitz constant, in the Euclidean norms of input and output."""

    lower: float
    """The largest singular value of the Jacobian at the inputs."""
    upper: float | None
    """By operator norms; None for a network with an operation that has no rule."""
    upper_by_matrix: float | None
    """By the norms of matrices, at least as large."""
    why: str
    """What has no rule; empty where there are upper bounds."""
    layers: tuple[LayerNorms, ...]


def lipschitz(model: nn.Module, inputs: Tensor) -> Lipschitz:
    """Return bounds for a network in evaluation mode that takes one tensor; inputs: (N, ...), such as test images.

    Norms are folded first; where a BatchNorm can't be, all of them stay operations of their own. Raises FoldError for a
    model in training mode, and where an SN or MSN layer can't be folded.
    """
    try:
        plain = fold(model)
    except FoldError:
        plain, _ = fold_layers(model)
    plain.requires_grad_(False)
    lower = jacobian_norm(plain, inputs)
    try:
        graph = fx.symbolic_trace(plain)
    except Exception as cause:  # whatever the network's own code does under a tracer
        why = f"torch.fx: {str(cause).splitlines()[0]}"
        return Lipschitz(lower=lower, upper=None, upper_by_matrix=None, why=why, layers=())
    walk = _Walk(graph)
    try:
        walk.run(inputs[:1])
    except _NoRule as cause:
        why = str(cause).splitlines()[0]  # fx adds where it was
        return Lipschitz(lower=lower, upper=None, upper_by_matrix=None, why=why, layers=tuple(walk.layers))
    upper, by_matrix = walk.result
    return Lipschitz(lower=lower, upper=upper, upper_by_matrix=by_matrix, why="", layers=tuple(walk.layers))


def jacobian_norm(model: nn.Module, inputs: Tensor) -> float:
    """Return the largest singular value of the Jacobian at any of the inputs (N, ...), from below.

    By power iteration for all inputs at once: in evaluation they do not see each other.
    """
    rng = torch.Generator().manual_seed(0)
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = model(x)
        weights = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, weights, create_graph=True)  # J^T w, linear in w: its gradient is J v
        v = torch.randn(x.shape, generator=rng).to(x)
        for _ in range(_STEPS):
            v = v / _lengths(v)
            (pushed,) = torch.autograd.grad(pulled, weights, v, retain_graph=True)
            (v,) = torch.autograd.grad(y, x, pushed, retain_graph=True)
    return float(_lengths(pushed).max())


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1).clamp_min(1e-30)
    return lengths.view(-1, *[1] * (rows.dim() - 1))


class _NoRule(Exception):
    """What an operation does to distances is not known."""


class _Walk(fx.Interpreter):
    """Runs a graph on one input and bounds what has come to each node."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.bounds: dict[fx.Node, _Bound] = {}
        self.layers: list[LayerNorms] = []
        self.result: _Bound = (0.0, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and bound its output."""
        value = super().run_node(n)
        if n.op == "placeholder":
            self.bounds[n] = (1.0, 1.0)
        moving = [each for each in n.all_input_nodes if each in self.bounds]
        if n.op == "output":
            self.result = self.bounds[moving[0]] if moving else (0.0, 0.0)
        elif moving and isinstance(value, Tensor):
            self.bounds[n] = self._bound(n, value, moving)
        return value

    def _bound(self, n: fx.Node, value: Tensor, moving: list[fx.Node]) -> _Bound:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        name = str(n.target) if n.op == "call_method" else getattr(n.target, "__name__", str(n.target))
        what = f"{n.target}: {type(module).__name__}" if module is not None else name
        in_place = name.endswith("_") or bool(n.kwargs.get("inplace")) or bool(getattr(module, "inplace", False))
        if in_place and any(other is not n for other in moving[0].users if other not in self.env):
            raise _NoRule(f"{what} overwrites what is read again")
        bounds = [self.bounds[each] for each in moving]
        if name == "cat":
            joined: Any = n.args[0]
            return _pairwise(math.hypot, [self.bounds[each] for each in joined if each in self.bounds])
        if name in ("add", "add_", "sub", "iadd"):
            grown = any(self.env[each].numel() < value.numel() for each in moving)
            if n.kwargs or grown:
                raise _NoRule(f"{what} with broadcasting or a factor")
            return _pairwise(lambda *each: sum(each), bounds)
        if len(moving) > 1:
            raise _NoRule(f"{what} of two tensors")
        if name in ("mul", "mul_", "addcmul") and not n.kwargs:
            return self._times(bounds[0], self._largest_factor(n, value, moving[0]))
        if isinstance(module, _MaxPoolNd) or name.startswith("max_pool"):
            return self._times(bounds[0], self._pooled(n, module, value.dim() - 2))
        if isinstance(module, _CLOSER_MODULES) or name in _CLOSER:
            slope = abs(module.negative_slope) if isinstance(module, nn.LeakyReLU) else 1.0
            return self._times(bounds[0], max(1.0, slope))
        if isinstance(module, _LINEAR_MODULES) or name in _LINEAR:
            return self._linear(n, module, self.env[moving[0]], bounds[0])
        raise _NoRule(what)

    def _largest_factor(self, n: fx.Node, value: Tensor, moving: fx.Node) -> float:
        """Return the largest entry of what a tensor is multiplied with, which must not make the tensor larger."""
        others = [each for each in n.args[-2:] if each is not moving]
        if len(others) != 1 or (n.args[0] is moving and len(n.args) > 2):
            raise _NoRule(f"{n.target} of one tensor twice")
        other = torch.as_tensor(self.env[others[0]] if isinstance(others[0], fx.Node) else others[0])
        if value.numel() > self.env[moving].numel():
            raise _NoRule(f"{n.target} with broadcasting")
        return float(other.abs().max())

    @staticmethod
    def _times(bound: _Bound, factor: float) -> _Bound:
        return bound[0] * factor, bound[1] * factor

    def _linear(self, n: fx.Node, module: nn.Module | None, x: Tensor, bound: _Bound) -> _Bound:
        args, kwargs = self.fetch_args_kwargs_from_env(n)

        def run(x: Tensor) -> Tensor:
            y: Tensor = getattr(self, n.op)(n.target, (x, *args[1:]), kwargs)
            return y

        if isinstance(module, _BatchNorm):
            return self._times(bound, _largest_gain(module))
        norm = _operator_norm(run, x)
        if not isinstance(module, _ConvNd | nn.Linear):
            return self._times(bound, norm)
        # A transposed convolution is the adjoint of the convolution with the same weight, so has its norm.
        matrix, overlap = largest_singular_value(module.weight.flatten(1)), 1.0
        if isinstance(module, _ConvNd):
            overlap = _overlap(module.kernel_size, module.stride, module.dilation)
            if module.padding_mode != "zeros" and not isinstance(module, _ConvTransposeNd):
                raise _NoRule(f"{n.target}: {module.padding_mode} padding")
        self.layers.append(LayerNorms(name=str(n.target), operator=norm, matrix=matrix, overlap=overlap))
        return bound[0] * norm, bound[1] * matrix * overlap

    def _pooled(self, n: fx.Node, module: nn.Module | None, rank: int) -> float:
        """Return the factor of max pooling: a pixel may be the largest of every window that it is in."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        held = {**dict(zip(("kernel_size", "stride"), args[1:3], strict=False)), **kwargs}
        size: Any = getattr(module, "kernel_size", held.get("kernel_size"))
        step: Any = getattr(module, "stride", held.get("stride")) or size
        sizes, steps = (each if isinstance(each, tuple) else (each,) * rank for each in (size, step))
        return _overlap(sizes, steps, (1,) * rank)


def _largest_gain(norm: _BatchNorm) -> float:
    if norm.running_var is None:
        raise _NoRule("a BatchNorm without running statistics")
    gain = (norm.running_var + norm.eps).rsqrt()
    return float((gain if norm.weight is None else gain * norm.weight).abs().max())


def _pairwise(rule: Any, bounds: list[_Bound]) -> _Bound:
    return rule(*(each[0] for each in bounds)), rule(*(each[1] for each in bounds))


def _overlap(size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> float:
    """Return the root of the number of windows that a pixel is in at most."""
    return math.sqrt(
        math.prod(
            math.ceil(each / (step // math.gcd(step, spread)))
            for each, step, spread in zip(size, stride, dilation, strict=True)
        )
    )


def _operator_norm(run: Any, like: Tensor) -> float:
    """Return the norm of an affine map of tensors of this shape, its offset apart, by power iteration."""
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like).requires_grad_()
    with torch.enable_grad():
        y = run(x)
    norm = torch.zeros(())
    v = x.detach()
    with torch.no_grad():
        offset = run(torch.zeros_like(v))
        for _ in range(_ITERATIONS):
            v = v / v.norm().clamp_min(1e-30)
            pushed = run(v) - offset
            norm = pushed.norm()
            (v,) = torch.autograd.grad(y, x, pushed, retain_graph=True)
    return float(norm)
