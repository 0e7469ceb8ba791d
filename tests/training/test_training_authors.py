"""Checkpoints in the layout of the paper's authors compute, imported, what the authors' code computes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from authors_cases import authors_forward, images, published, write
from torch import Tensor

import msn_deploy
from msn_deploy.core.artifacts import parent_of, read_sidecar
from msn_deploy.core.model_info import Preprocess
from msn_deploy.msn import fold
from msn_deploy.nets import build_net
from msn_deploy.pipeline.verify import verify_folder
from msn_deploy.training import import_checkpoint, load_checkpoint
from msn_deploy.training.authors import layout_of, state_of

pytestmark = pytest.mark.slow

DATA = Path(msn_deploy.__file__).resolve().parents[2] / "shared" / "data"
KINDS = {  # of synthetic file: our net, norm, classifier, and parameters
    "msn": ("cnn3", "msn-affine", "sn", 103_482),
    "sn": ("cnn3", "sn", "sn", 103_402),
    "bn": ("cnn3", "bn", "linear", 103_482),
    "none": ("cnn3_relu", "none", "linear", 103_402),
    "svhn": ("vgg7_svhn", "bn", "linear", 437_738),
}


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_mapping_is_exact(kind: str) -> None:
    net = published(kind)
    layout = layout_of(net, Path("net.t7"))
    model = build_net(layout.recipe(epochs=1), classes=10).double().eval()
    model.load_state_dict(state_of(net, layout, model))
    logits = authors_forward(kind, net, images(kind))
    assert worst(model(images(kind)), logits) < 1e-12 * max(1.0, float(logits.abs().max()))
    assert worst(fold(model)(images(kind)), logits) < 1e-12 * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize(
    ("kind", "term"),
    [
        *(("msn", term) for term in ("sigma", "fc sigma", "bias", "gain", "shift", "mean", "slope")),
        *(("sn", term) for term in ("sigma", "fc sigma", "bias", "slope")),
        *(("bn", term) for term in ("bias", "gain", "shift", "mean", "variance", "slope")),
        ("none", "bias"),
        *(("svhn", term) for term in ("bias", "mean", "variance")),
    ],
)
def test_every_term_of_these_networks_matters(kind: str, term: str) -> None:
    net, x = published(kind), images(kind)
    assert worst(authors_forward(kind, net, x, forget=term), authors_forward(kind, net, x)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_imported_file_is_a_checkpoint_like_any_other(tmp_path: Path, kind: str) -> None:
    source, out = write(tmp_path / "net.t7", published(kind)), tmp_path / "net.safetensors"
    imported = import_checkpoint(source, out)
    net, norm, classifier, parameters = KINDS[kind]
    assert (imported.checkpoint, imported.source) == (out, source)
    assert (imported.net, imported.norm, imported.parameters) == (net, norm, parameters)
    assert (imported.recorded_test_accuracy, imported.epoch) == (0.9753, 41)

    model, info = load_checkpoint(out)
    logits = authors_forward(kind, published(kind), images(kind))
    bound = 1e-6 * max(1.0, float(logits.abs().max()))
    assert worst(model.double()(images(kind)), logits) < bound
    assert worst(fold(model)(images(kind)), logits) < bound

    assert (info.net, info.norm, info.data) == (net, norm, "svhn" if kind == "svhn" else "mnist")
    assert (info.recipe["classifier"], info.recipe["train"]["epochs"]) == (classifier, 42)
    assert info.classes == tuple("0123456789")
    assert info.metrics == {"recorded_test_accuracy": 0.9753}
    size, mean, std = (32, (0.5,) * 3, (0.5,) * 3) if kind == "svhn" else (28, (0.4914,), (0.2023,))
    assert info.preprocess == Preprocess(height_px=size, width_px=size, channels=len(mean), mean=mean, std=std)
    assert read_sidecar(out).parents == (parent_of(source, role="checkpoint"),)
    assert [found.verdict for found in verify_folder(tmp_path)] == ["ok", "unknown"]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "net.t7", published("msn"))
    for name in "ab":
        import_checkpoint(source, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("MSNconv_0.001_SVHN.t7", "svhn", "is called MSN but holds a BatchNorm network; imported as bn"),
        ("SNconv_0.1_SVHN.t7", "svhn", "is called SN but holds a BatchNorm network; imported as bn"),
        ("MSNconv_0.1_MNIST.t7", "none", "is called MSN but holds a network without a norm; imported as none"),
        ("BNconv_0.1_MNIST.t7", "msn", "is called BN but holds an MSN network; imported as msn-affine"),
        ("BNconv_0.001_SVHN.t7", "svhn", ""),
        ("MSNconv_0.001_MNIST.t7", "msn", ""),
        ("SNconv_0.001_MNIST.t7", "sn", ""),
        ("Conv_0.001_MNIST.t7", "none", ""),
        ("mine.t7", "bn", ""),
    ],
)
def test_the_content_decides_and_a_name_that_says_otherwise_is_told(
    caplog: pytest.LogCaptureFixture, name: str, kind: str, says: str
) -> None:
    with caplog.at_level(logging.WARNING):
        layout = layout_of(published(kind), Path("folder") / name)
    assert (layout.net, layout.norm) == KINDS[kind][:2]
    assert caplog.messages == ([f"{name} {says}"] if says else [])


@torch.no_grad()
def test_batch_norm_under_the_name_of_conv_has_relu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two published files are like that, and reach their recorded accuracy with ReLU alone."""
    source = write(tmp_path / "Conv_MNIST.t7", published("bn"))
    assert import_checkpoint(source, tmp_path / "net.safetensors").net == "cnn3_relu"
    assert "Conv_MNIST.t7 is called Conv but holds a BatchNorm network; imported as bn, with the ReLU" in caplog.text
    model, _ = load_checkpoint(tmp_path / "net.safetensors")
    logits = authors_forward("bn", published("bn"), images("bn"), forget="slope")
    assert worst(model.double()(images("bn")), logits) < 1e-6 * float(logits.abs().max())


@pytest.mark.skipif(not (DATA / "msn-authors").is_dir(), reason="the published checkpoints are not beside the checkout")
@pytest.mark.parametrize(
    ("name", "norm", "accuracy"),
    [("MSNconv_0.001_MNIST", "msn-affine", 0.9759), ("BNconv_0.001_MNIST", "bn", 0.9875)],
)
def test_published_checkpoints_reach_their_accuracy_here_and_in_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, norm: str, accuracy: float
) -> None:
    from msn_deploy.pipeline.evaluate import evaluate
    from msn_deploy.pipeline.export import export_onnx

    monkeypatch.chdir(DATA)  # where "mnist", the data of these checkpoints, is the name of a folder
    checkpoint, graph = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.onnx"
    imported = import_checkpoint(DATA / "msn-authors" / f"{name}.t7", checkpoint)
    assert imported.norm == norm
    measured = evaluate(checkpoint)
    assert (measured.data, measured.samples) == ("mnist", 10_000)
    assert measured.accuracy == pytest.approx(accuracy, abs=2e-4)
    assert measured.accuracy == pytest.approx(imported.recorded_test_accuracy, abs=2e-4)
    report = export_onnx(str(checkpoint), graph, dynamic_batch=True)
    assert report.operators == {"Conv": 3, "LeakyRelu": 3, "Reshape": 1, "Gemm": 1}
    assert report.parity_on.endswith("test images of mnist")
    assert evaluate(graph).predictions == measured.predictions
