"""A small network for each task: trained here, exported, evaluated as ONNX, FP16 and INT8, and shown by `infer`.

Classification and detection are in the tests of their recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.model_info import TensorSpec
from msn_deploy.data import load_split
from msn_deploy.data.preparation import Preparation
from msn_deploy.pipeline.budget import parse_drop
from msn_deploy.pipeline.calibrate import calibrate
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.pipeline.fp16 import cast_to_fp16
from msn_deploy.pipeline.infer import infer
from msn_deploy.tasks import make_task
from msn_deploy.tasks.task import Given

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
pytestmark = pytest.mark.slow

MOST_PARAMETERS = 20_000
INT8_LOSES = "5%"  # at most, of the FP32 metric
SAMPLES = 120  # of the test
SIDE_PX = 48  # scenes are 96x96: what a network gives is brought to that by `infer`


@dataclass(frozen=True, kw_only=True)
class Case:
    """steps: of training with Adam. margin: by which each precision beats `constant`, the best answer that does not
    depend on the image, in the metric's unit. constant: from labels of training and test to the metric of that answer.
    """

    net: Callable[[], Any]
    loss: Callable[[Any, Any], Any]
    target: Callable[[Any], Any]
    constant: Callable[[Any, Any], float]
    steps: int
    margin: float
    batch: int = 32
    data: str = "digits-scenes"
    side_px: int = SIDE_PX
    channels: int = 3
    reading: dict[str, str] = field(default_factory=dict)


def conv(before, after, stride=1):
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def dense(out, bias=0.0):
    """Return a map of half the input's size."""
    last = nn.Conv2d(16, out, 1)
    nn.init.constant_(last.bias, bias)
    up = nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(conv(3, 12, 2), conv(12, 24, 2), conv(24, 24), up, conv(24, 16), last)


def pooled(out):
    trunk = (conv(3, 12, 2), conv(12, 24), nn.MaxPool2d(2), conv(24, 32), nn.MaxPool2d(2), conv(32, 32))
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, out))


class Cleaner(nn.Module):
    """Adds to an image what is wrong with it; nothing before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.change = nn.Sequential(conv(3, 16), conv(16, 16), nn.Conv2d(16, 3, 3, 1, 1))
        nn.init.zeros_(self.change[-1].weight)
        nn.init.zeros_(self.change[-1].bias)

    def forward(self, x):
        return x + self.change(x)


def embedder():
    return nn.Sequential(conv(1, 12), conv(12, 24, 2), conv(24, 24, 2), nn.Flatten(), nn.Linear(96, 16))


def full_size(maps):
    return F.interpolate(maps, size=(SIDE_PX, SIDE_PX), mode="bilinear")


def depth_loss(maps, wanted):
    measured = torch.isfinite(wanted) & (wanted > 0)
    return ((full_size(maps) - wanted).abs()[measured] / wanted[measured]).mean()


def same_class_loss(vectors, labels):
    """Return the cross entropy of which other image of the batch is of the same class, by their cosines."""
    near = 8 * F.normalize(vectors) @ F.normalize(vectors).T - 1e4 * torch.eye(len(vectors))
    same = (labels[:, None] == labels).float() * (1 - torch.eye(len(vectors)))
    found = (near.log_softmax(1) * same).sum(1) / same.sum(1).clamp_min(1)
    return -found.mean()


def measured(labels):
    return labels[np.isfinite(labels) & (labels > 0)]


def best_depth_error(train, test):
    """Return AbsRel of the one depth that is best for all images."""
    depths = np.quantile(measured(train), np.linspace(0.05, 0.6, 24))
    errors = [np.mean([np.mean(np.abs(at - measured(each)) / measured(each)) for each in test]) for at in depths]
    return float(min(errors))


def psnr(error):
    return float(np.mean(10 * np.log10(255**2 / (error.astype(float) ** 2).mean((1, 2, 3)))))


COUNT, SUM = (3.3, 1.8), (14.8, 10.3)  # mean and deviation

CASES = {
    "segmentation": Case(
        net=lambda: dense(11),
        loss=lambda out, wanted: F.cross_entropy(full_size(out), wanted, torch.tensor([0.2] + [1.0] * 10)),
        target=lambda labels: torch.from_numpy(labels[..., 0].astype(np.int64)),
        constant=lambda _, test: float((test == 0).mean() / len(np.unique(test))),
        steps=90,
        margin=0.06,
        batch=24,
    ),
    "multi-label": Case(
        net=lambda: pooled(10),
        loss=F.binary_cross_entropy_with_logits,
        target=lambda labels: torch.from_numpy(labels.astype(np.float32)),
        constant=lambda _, test: float(test.mean()),  # equal scores: the share of images that have the label
        steps=100,
        margin=0.08,
        side_px=32,
    ),
    "regression": Case(
        net=lambda: pooled(2),
        loss=F.l1_loss,
        target=lambda labels: torch.from_numpy(((labels - [COUNT[0], SUM[0]]) / [COUNT[1], SUM[1]]).astype(np.float32)),
        constant=lambda train, test: float(np.abs(test - np.median(train, 0)).mean()),
        steps=80,
        margin=0.7,
        side_px=32,
        reading={"mean": f"{COUNT[0]},{SUM[0]}", "std": f"{COUNT[1]},{SUM[1]}"},
    ),
    "depth": Case(
        net=lambda: dense(1, bias=8.0),
        loss=depth_loss,
        target=lambda labels: torch.from_numpy(labels.transpose(0, 3, 1, 2)),
        constant=best_depth_error,
        steps=45,
        margin=0.1,
    ),
    "embedding": Case(
        net=embedder,
        loss=same_class_loss,
        target=torch.from_numpy,
        constant=lambda _, test: float(np.max(np.bincount(test)) / len(test)),  # any other image is the nearest
        steps=60,
        margin=0.6,
        batch=64,
        data="digits",
        side_px=8,
        channels=1,
    ),
    "image-to-image": Case(
        net=Cleaner,
        loss=F.mse_loss,
        target=lambda labels: torch.from_numpy(labels.transpose(0, 3, 1, 2).astype(np.float32) / 255),
        constant=lambda train, test: psnr(train.mean((0, 1, 2)) - test),
        steps=50,
        margin=12,
        batch=8,
    ),
}


def split(case, name, task):
    return load_split(case.data, name, task=task, height_px=case.side_px, width_px=case.side_px, channels=case.channels)


def as_input(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255)


def trained(case, train):
    torch.manual_seed(0)
    net = case.net()
    assert sum(each.numel() for each in net.parameters()) <= MOST_PARAMETERS
    images, wanted = as_input(np.asarray(train.images)), case.target(np.asarray(train.labels))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=case.steps)
    order = torch.Generator().manual_seed(0)
    for _ in range(case.steps):
        at = torch.randint(len(images), (case.batch,), generator=order)
        optimizer.zero_grad()
        case.loss(net(images[at]), wanted[at]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@pytest.mark.parametrize("task", CASES)
def test_a_network_of_the_task_is_better_than_a_constant_in_every_precision(tmp_path, task):
    case = CASES[task]
    train, test = split(case, "train", task), split(case, "test", task).first(SAMPLES)
    net = trained(case, train)
    path = tmp_path / "net.onnx"
    report = export_onnx(
        net,
        path,
        input_shape=(1, case.channels, case.side_px, case.side_px),
        dynamic_batch=True,
        simplify=False,
        preparation=Preparation(preprocess="zero-one"),
        task=task,
        classes=() if task == "embedding" else test.classes,
        reading=case.reading,
    )
    assert (report.task, report.reading) == (task, case.reading)
    half = cast_to_fp16(path, tmp_path / "half.onnx", data=case.data).path
    made = calibrate(
        path, tmp_path / "int8.onnx", data=case.data, max_drop=parse_drop(INT8_LOSES), samples=100, use_cache=False
    )
    int8 = made.path
    found = {each: evaluate(each, data=case.data, samples=SAMPLES, threads=1) for each in (path, half, int8)}
    full = found[path]
    constant = case.constant(np.asarray(train.labels), np.asarray(test.labels))
    for each, precision in zip(found.values(), ("fp32", "fp16", "int8"), strict=True):
        ahead = each.value - constant if each.higher_is_better else constant - each.value
        assert (each.task, each.precision, each.samples) == (task, precision, len(test.labels))
        assert ahead > case.margin, (each.metric, each.value, constant)
        assert set(each.metrics) == set(full.metrics)
    assert found[half].value == pytest.approx(full.value, rel=0.01)
    assert (made.verdict.kind, made.verdict.metric.name) == ("INT8", full.metric)
    assert (made.verdict.metric.interval is None) == (task in ("segmentation", "multi-label"))
    assert made.verdict.metric.drop <= made.verdict.metric.allowed
    with torch.no_grad():  # the file's metric is that of the network itself
        outputs = net(as_input(np.asarray(test.images))).numpy()
    opened = make_task(task, _given(task, case, test, outputs))
    meter = opened.meter()
    meter.add(opened.answers({"y": outputs}), test.labels)
    assert full.value == pytest.approx(meter.score().value, rel=1e-3)
    _show(tmp_path, int8, task, case)


def _given(task, case, test, outputs):
    return Given(
        model=task,
        classes=test.classes,
        named=False,
        reading=case.reading,
        outputs=(TensorSpec("y", "float32", outputs.shape),),
        endings=("logits",),
        frame=(case.side_px, case.side_px),
    )


def _show(folder, model, task, case):
    """Draw the answers for three test images, of a size and proportions that are not those of the network."""
    large = load_split(case.data, "test", task=task, height_px=120, width_px=160, channels=case.channels)
    (folder / "photos").mkdir()
    for at, image in enumerate(np.asarray(large.images[:3])):
        Image.fromarray(image.squeeze()).save(folder / "photos" / f"{at}.png")
    told = list(infer(model, [folder / "photos"], save=folder / "drawn"))
    assert len(told) == 3
    for at, each in enumerate(told):
        assert each.error == ""
        assert each.answer.text()
        drawn = np.asarray(Image.open(folder / "drawn" / f"{at}.png"))
        height, width = drawn.shape[:2]
        assert width % 160 == 0
        assert height >= 120 * (width // 160)
        assert (drawn[: 120 * (width // 160)] != np.kron(each.pixels, np.ones((width // 160, width // 160, 1)))).any()
