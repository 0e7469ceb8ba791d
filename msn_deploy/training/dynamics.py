"""What a training does to gradients, means and singular values, in a few numbers per layer and window of steps.

An observer of `train`: it looks at every `every`-th step, adds up, and closes a window after some looks. Once there are
too many windows they are merged two by two, so memory does not grow with the training. Per layer and window:

  sparsity       Hoyer's measure of the weight's gradient, (sqrt(n) - |g|_1 / |g|_2) / (sqrt(n) - 1): 0 where all n
                 entries are equally large, 1 where one is all (Hoyer, 2004)
  small          share of the gradient's entries below a hundredth of its largest one
  variance       of each entry of the gradient over the steps of the window, mean over the entries: its noise
  drift          |mean| of a channel before its shift or bias, over its deviation; mean over the channels: the paper's
                 mean drift. Zero by construction where a norm takes the mean off
  shifted        the same after shift or bias, which is what the activation sees
  weight_mean    mean of the weight that is applied, over its deviation
  singular       the five largest singular values of the weight that is applied
  rank           its effective rank: exp of the entropy of its normalised singular values (Roy and Vetterli, 2007)
  sigma          tracked over true spectral norm; nothing for layers without one
  eigenvalues    the five largest of the gradient's second moment over the window, as shares of their sum; the gradient
                 is sketched to 64 numbers first, which keeps inner products on average (count sketch)
  directions     (sum of eigenvalues)^2 / sum of squares: how many directions the steps of the window have
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from msn_deploy.msn.layers import SpectralLayer, WSConv2d, standardised

_LOOKS = 4  # per window, at first
_WINDOWS = 64  # then there are half as many, twice as long
_SKETCH = 64
_TOP = 5

Window = dict[str, Any]
"""step: the middle of the window; every other key: one number or list per layer."""


class Dynamics:
    """Collects `windows`; see the module. every: steps from one look to the next, at least 1."""

    def __init__(self, *, every: int = 5) -> None:
        self.every = every
        self.windows: list[Window] = []
        self.layers: list[str] = []
        self.parameters = 0
        self._looks = _LOOKS
        self._watched: list[_Layer] = []
        self.is_looking = True
        self._steps: list[int] = []

    def begin(self, model: nn.Module) -> None:
        """Watch every convolution with the BatchNorm or GroupNorm right behind it, if there is one."""
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
        for at, (name, module) in enumerate(modules):
            if isinstance(module, _ConvNd):
                behind = modules[at + 1][1] if at + 1 < len(modules) else None
                norm = behind if isinstance(behind, _BatchNorm | nn.GroupNorm) else None
                self.layers.append(name)
                self._watched.append(_Layer(module, norm, seed=len(self._watched), owner=self))

    def before_step(self, step: int) -> None:
        """Look at the gradients, if it is time; close the window, if it is full."""
        if self.is_looking:
            self._steps.append(step)
            for layer in self._watched:
                layer.look()
            if len(self._steps) == self._looks:
                self._close()
        self.is_looking = (step + 1) % self.every == 0

    def after_epoch(self, entry: Mapping[str, Any]) -> None:
        """Nothing: the history has it."""

    def finish(self) -> None:
        """Close the last window, if there is more than one look in it."""
        if len(self._steps) > 1:
            self._close()

    def _close(self) -> None:
        taken = [layer.take() for layer in self._watched]
        window: Window = {"step": sum(self._steps) / len(self._steps)}
        window |= {key: [each[key] for each in taken] for key in (taken[0] if taken else {})}
        self.windows.append(window)
        self._steps = []
        if len(self.windows) == _WINDOWS:
            pairs = zip(self.windows[::2], self.windows[1::2], strict=True)
            self.windows = [_merged(first, second) for first, second in pairs]
            self._looks *= 2


class _Layer:
    """The running sums of one convolution."""

    def __init__(self, conv: _ConvNd, norm: _BatchNorm | nn.GroupNorm | None, *, seed: int, owner: Dynamics) -> None:
        self.conv, self.owner = conv, owner
        weight = conv.weight
        rng = torch.Generator().manual_seed(seed)  # its own: torch's is the training's
        self.bucket = torch.randint(_SKETCH, (weight.numel(),), generator=rng).to(weight.device)
        self.sign = (torch.randint(2, (weight.numel(),), generator=rng) * 2 - 1).to(weight)
        (norm or conv).register_forward_hook(self._saw)
        self._start()

    def _start(self) -> None:
        weight = self.conv.weight
        self.count = 0
        self.sums = {"sparsity": 0.0, "small": 0.0, "drift": 0.0, "shifted": 0.0}
        self.mean, self.squares = torch.zeros_like(weight), torch.zeros_like(weight)
        self.moment = torch.zeros(_SKETCH, _SKETCH, device=weight.device)

    @torch.no_grad()
    def _saw(self, module: _ConvNd | _BatchNorm | nn.GroupNorm, inputs: Any, output: Tensor) -> None:
        """Note how far the channels' means are from zero, before and after the shift."""
        if not (self.owner.is_looking and module.training):
            return
        each = output.detach().float().transpose(0, 1).flatten(1)
        mean, deviation = each.mean(1), each.std(1).clamp_min(1e-12)
        shift: Tensor | None = getattr(module, "shift", module.bias)
        before = mean if shift is None else mean - shift.float()
        self.sums["drift"] += float((before.abs() / deviation).mean())
        self.sums["shifted"] += float((mean.abs() / deviation).mean())

    @torch.no_grad()
    def look(self) -> None:
        """Add the gradient of this step."""
        grad = self.conv.weight.grad
        assert grad is not None
        flat = grad.flatten()
        size = flat.abs()
        root = flat.numel() ** 0.5
        self.sums["sparsity"] += float((root - size.sum() / flat.norm().clamp_min(1e-30)) / max(root - 1, 1e-12))
        self.sums["small"] += float((size < size.max() / 100).float().mean())
        self.count += 1
        far = grad - self.mean  # Welford, 1962
        self.mean += far / self.count
        self.squares += far * (grad - self.mean)
        sketch = torch.zeros(_SKETCH, device=flat.device).index_add_(0, self.bucket, flat * self.sign)
        self.moment.addr_(sketch, sketch)

    @torch.no_grad()
    def take(self) -> dict[str, Any]:
        """Return the window's numbers and begin the next."""
        count = self.count
        weight = applied_weight(self.conv)
        values = torch.linalg.svdvals(weight.flatten(1))
        share = values / values.sum().clamp_min(1e-30)
        eigenvalues = torch.linalg.eigvalsh(self.moment).clamp_min(0).flip(0)
        total = eigenvalues.sum().clamp_min(1e-30)
        tracked = None
        if isinstance(self.conv, SpectralLayer):
            tracked = 1 + self.conv.sigma_error()
        taken = {
            **{key: value / count for key, value in self.sums.items()},
            "variance": float(self.squares.mean()) / max(count - 1, 1),
            "weight_mean": float(weight.mean() / weight.std().clamp_min(1e-30)),
            "singular": values[:_TOP].tolist(),
            "rank": float(torch.special.entr(share).sum().exp()),
            "sigma": tracked,
            "eigenvalues": (eigenvalues / total)[:_TOP].tolist(),
            "directions": float(total**2 / eigenvalues.square().sum().clamp_min(1e-30)),
        }
        self._start()
        return taken


@torch.no_grad()
def applied_weight(layer: _ConvNd) -> Tensor:
    """Return the weight that a convolution multiplies with: divided by sigma, scaled or standardised, as it does."""
    weight = layer.weight.detach()
    if isinstance(layer, WSConv2d):
        return standardised(weight, layer.gain, layer.eps)
    if not isinstance(layer, SpectralLayer):
        return weight
    weight = weight / layer.sigma()
    if layer.scale is not None:
        weight = weight * layer.scale
    gain = getattr(layer, "gain", None)
    return weight if gain is None else weight * gain.detach().view(-1, *[1] * (weight.dim() - 1))


def _merged(first: Window, second: Window) -> Window:
    def mean(one: Any, other: Any) -> Any:
        if isinstance(one, list):
            return [mean(*pair) for pair in zip(one, other, strict=True)]
        return None if one is None else (one + other) / 2

    return {key: mean(first[key], second[key]) for key in first}
