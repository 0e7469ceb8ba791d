"""A BatchNorm detector of the user's own becomes MSN, learns on, folds and goes to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msn_deploy.msn import MSNConv2d, convert, fold
from msn_deploy.training.labels import NOTHING, Boxes
from msn_deploy.training.losses import detection_loss

SIDE_PX, CLASSES = 32, 2


class Own(nn.Module):
    """A residual block, two heads behind one tower, and distances by softplus: nothing that is ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.first = nn.Conv2d(8, 16, 3, 2, 1)
        self.first_norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(16)
        self.tower = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classes, self.sides = nn.Conv2d(16, CLASSES, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.first_norm(self.first(self.stem(x))))
        x = self.tower(nn.functional.silu(self.second_norm(self.second(x)) + x))
        return torch.cat([self.classes(x), nn.functional.softplus(self.sides(x))], 1)


def _scenes(count: int) -> tuple[Tensor, Boxes]:
    """Return noisy pictures, each with a bright square in one of two channels."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIDE_PX, SIDE_PX, generator=rng) * 0.2
    corners = torch.randint(2, 16, (count, 2), generator=rng)
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    boxes = torch.cat([corners, corners + 12], 1).float()
    for image, (left, top), label in zip(images, corners.tolist(), labels.tolist(), strict=True):
        image[label, top : top + 12, left : left + 12] += 1.5
    padded = torch.stack([boxes, torch.zeros_like(boxes)], 1)
    return images, Boxes(padded, torch.stack([labels, torch.full_like(labels, NOTHING)], 1))


def _steps(model: nn.Module, count: int, learning_rate: float) -> list[float]:
    images, objects = _scenes(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    model.train()
    for _ in range(count):
        loss = detection_loss(model(images), objects, height_px=SIDE_PX)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@pytest.mark.slow
def test_a_bn_detector_becomes_msn_and_learns_on(tmp_path: Path) -> None:
    from msn_deploy.engine import OrtRunner, run_images
    from msn_deploy.model.opened import open_model
    from msn_deploy.pipeline.export import export_onnx

    torch.manual_seed(0)
    trained = Own()
    before = _steps(trained, 30, 0.01)
    assert before[-1] < before[0] / 2
    found = convert(trained, "msn")
    assert sorted(found.converted) == ["first", "second", "stem.0", "tower.0"]
    assert set(found.converted.values()) == {"MSNConv2d"}
    assert not found.kept
    model, images = found.model, _scenes(16)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(images), trained(images), atol=2e-5, rtol=1e-4)
    after = _steps(model, 30, 0.003)
    assert np.mean(after[-5:]) < 0.9 * np.mean(after[:5])
    assert any(isinstance(module, MSNConv2d) for module in model.modules())
    folded = fold(model)
    assert not any(isinstance(module, (MSNConv2d, nn.BatchNorm2d)) for module in folded.modules())
    with torch.no_grad():
        wanted = model(images)
        torch.testing.assert_close(folded(images), wanted, atol=2e-5, rtol=1e-4)
    export_onnx(model, tmp_path / "own.onnx", input_shape=(1, 3, SIDE_PX, SIDE_PX), dynamic_batch=True)
    opened = open_model(tmp_path / "own.onnx", step="a test")
    kinds = {node.op_type for node in opened.proto.graph.node}
    assert "BatchNormalization" not in kinds
    made = run_images(OrtRunner(opened), images.numpy())
    np.testing.assert_allclose(made, wanted.numpy(), atol=5e-5, rtol=1e-4)
