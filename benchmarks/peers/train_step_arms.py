"""The arms of train_step.py: one training step of the same network with each normalisation, as a function to call.

`authors` is the algorithm of the paper's authors, written here from its description: 100 power iterations in every
forward from a u outside the state, the weight overwritten by its quotient, and a mean-only norm with gain and bias
that works on a channel-major copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from step_nets import CLASSES, NETS, SIDE_PX
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from msn_deploy.msn import MSNConv2d, SNConv2d
from msn_deploy.nets.densenet_bc import Shift


class MeanNorm(nn.Module):
    """y - mean(y) + shift as anybody would write it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, y: Tensor) -> Tensor:
        mean = y.mean((0, 2, 3))
        with torch.no_grad():
            self.running_mean.lerp_(mean.float(), 0.1)
        return y - (mean - self.shift).view(-1, 1, 1)


class AuthorsConv2d(nn.Conv2d):
    """The weight is overwritten by weight / sigma in every forward; autograd sees nothing of it."""

    left: Tensor | None = None

    @torch.no_grad()
    def _overwrite(self) -> None:
        matrix = self.weight.flatten(1)
        left = torch.randn(1, matrix.shape[0], device=matrix.device) if self.left is None else self.left
        for _ in range(100):
            right = torch.matmul(left, matrix)
            right = right / (right.norm() + 1e-12)
            left = torch.matmul(right, matrix.t())
            left = left / (left.norm() + 1e-12)
        sigma = (torch.matmul(left, matrix) * right).sum()
        self.left = left
        self.weight.copy_(self.weight / sigma)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            self._overwrite()
        return super().forward(x)


class AuthorsNorm(nn.Module):
    """Mean-only norm with gain and bias, on a channel-major copy."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        swapped = x.transpose(0, 1)
        y = swapped.contiguous().view(swapped.shape[0], -1)
        mean = y.mean(dim=1)
        with torch.no_grad():
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean
        y = self.gain.view(-1, 1) * (y - mean.view(-1, 1)) + self.shift.view(-1, 1)
        return y.view(swapped.shape).transpose(0, 1)


class Parts:
    """One arm: how a convolution gets its norm (`after`), and what stands before the ReLU of a concatenation.

    layer: makes the convolution. after, before: make norms from a number of channels. bias: of convolutions without a
    norm behind them.
    """

    def __init__(
        self,
        layer: Callable[..., nn.Module],
        *,
        after: Callable[[int], nn.Module] = lambda _: nn.Identity(),
        before: Callable[[int], nn.Module] = lambda _: nn.Identity(),
        bias: bool = True,
        feature_bias: bool | None = None,
    ) -> None:
        self.layer, self.after, self.before = layer, after, before
        self.bias, self.feature_bias = bias, bias if feature_bias is None else feature_bias

    def conv(self, in_channels: int, out_channels: int, kernel: int, **options: int) -> nn.Module:
        layer = self.layer(in_channels, out_channels, kernel, bias=self.bias, **options)
        return nn.Sequential(layer, self.after(out_channels))

    def bottleneck(self, in_channels: int, out_channels: int) -> nn.Module:
        return self.conv(in_channels, out_channels, 1)

    def feature(self, in_channels: int, out_channels: int, kernel: int) -> nn.Module:
        return self.layer(in_channels, out_channels, kernel, padding=kernel // 2, bias=self.feature_bias)

    def classifier(self, features: int, classes: int) -> nn.Module:
        return nn.Linear(features, classes)


FUSED = "+fused"
"""Behind "msn": with the centring and the ReLU behind it in one kernel, on a GPU alone."""


def _torch_spectral(*args: int, **options: object) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(*args, **options))  # type: ignore[arg-type]


ARMS: dict[str, Parts] = {
    "none": Parts(nn.Conv2d),
    "bn": Parts(nn.Conv2d, after=nn.BatchNorm2d, before=nn.BatchNorm2d, bias=False),
    "torch-sn": Parts(_torch_spectral),
    "torch-sn+mean": Parts(_torch_spectral, after=MeanNorm, before=MeanNorm, bias=False),
    "authors": Parts(AuthorsConv2d, after=AuthorsNorm, before=AuthorsNorm),
    "sn": Parts(SNConv2d),
    "msn": Parts(MSNConv2d, before=Shift, feature_bias=False),
}


class Trainer:
    """One arm ready to train on one fixed batch of random images.

    form: "eager", "compiled" by torch.compile, or "graph", the whole step as one CUDA graph.
    """

    def __init__(
        self, net: str, arm: str, *, batch: int, layout: str, dtype: str, device: str, form: str = "eager"
    ) -> None:
        torch.manual_seed(0)
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.dtype = torch.bfloat16 if dtype == "bfloat16" else None
        model = NETS[net](ARMS[arm.removesuffix(FUSED)])
        if arm.endswith(FUSED):
            from centre_relu import fused  # Triton, which comes with torch for CUDA

            model = fused(model)
        self.model = model.to(device, memory_format=self.layout)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        side_px = SIDE_PX[net]
        x = torch.randn(batch, 3, side_px, side_px, generator=generator)
        self.x = x.to(device).to(memory_format=self.layout)
        labels = (batch, side_px, side_px) if net == "unet" else (batch,)
        self.labels = torch.randint(CLASSES, labels, generator=generator).to(device)
        self._loss = torch.compile(self.loss) if form == "compiled" else self.loss
        self._once = self._captured() if form == "graph" else self._plain

    def loss(self) -> Tensor:
        with torch.autocast(self.x.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            logits = self.model(self.x)
        return F.cross_entropy(logits.float(), self.labels)

    def step(self) -> None:
        """Forward, backward and update; returns when the device is done."""
        self._once()
        if self.x.is_cuda:
            torch.cuda.synchronize()

    def _plain(self) -> None:
        self._loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _captured(self) -> Callable[[], None]:
        """Return the replay of a step that was recorded after three others, on a stream of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._plain()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._plain()
        return graph.replay

    def saved_mib(self) -> float:
        """Return what autograd keeps between forward and backward, MiB, each memory once; no parameters, no input."""
        return saved_bytes(self.loss, [*self.model.parameters(), self.x, self.labels]) / 2**20

    def facts(self) -> dict[str, object]:
        """Return what is known of the arm besides its time."""
        return {
            "saved_mib": round(self.saved_mib(), 2),
            "parameters": sum(each.numel() for each in self.model.parameters()),
        }


def saved_bytes(forward: Callable[[], Tensor], own: Sequence[Tensor]) -> int:
    """Return what autograd keeps of a forward pass for its backward, each memory once, without that of `own`."""
    known = {each.untyped_storage().data_ptr() for each in own}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # alive, so that no storage is freed and its address taken again
    assert loss.requires_grad
    return sum(kept.values())
