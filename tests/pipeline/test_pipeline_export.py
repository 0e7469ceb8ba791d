"""`export_onnx`: an error that is put into one stage is named at that stage, and nothing is written."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

import msn_deploy.graph.certificate
import msn_deploy.msn
import msn_deploy.pipeline.export
import msn_deploy.pipeline.source
from msn_deploy.core.errors import FoldError, GateError, InputError, ParityError
from msn_deploy.graph.fold import fold_graph
from msn_deploy.graph.simplify import Simplified, Simplifier
from msn_deploy.model.identity import structural_hash
from msn_deploy.model.opened import OpenModel
from msn_deploy.pipeline.export import export_onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> Path:
    from msn_deploy.training import train

    recipe = small_recipe("cnn3", "msn", width=4, epochs=1)
    result: Path = train(recipe, out=tmp_path_factory.mktemp("trained"), device="cpu").checkpoint
    return result


def _break(model: ModelProto) -> ModelProto:
    """Make one weight of the first convolution wrong."""
    name = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    weight = next((each for each in model.graph.initializer if each.name in (name, f"{name}_cast")), None)
    if weight is None:  # Q/DQ: INT8 behind a DequantizeLinear
        source = next(node for node in model.graph.node if name in node.output)
        weight = next(each for each in model.graph.initializer if each.name == source.input[0])
    array = numpy_helper.to_array(weight).copy()
    array[0] = -array[0]
    array[0].flat[0] += 3
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return model


def _wrong_layer(model: nn.Module, **options: Any) -> Any:
    plain, layers = msn_deploy.msn.plain.fold_layers(model, **options)
    with torch.no_grad():
        next(module for module in plain.modules() if isinstance(module, nn.Conv2d)).bias.add_(0.5)
    return plain, layers


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **options: _break(function(*args, **options))


def _wrong_fold(model: ModelProto) -> Any:
    folded = fold_graph(model)
    _break(folded.model)
    return folded


STAGES = {
    "layers folded": ("msn_deploy.msn", "fold_layers", lambda _: _wrong_layer),
    "onnx": ("msn_deploy.graph.export", "to_onnx", _wrapped),
    "graph folded": ("msn_deploy.graph.fold", "fold_graph", lambda _: _wrong_fold),
    "fp16": ("msn_deploy.quant.precision", "to_fp16", _wrapped),
    "int8": ("msn_deploy.quant.quantize", "quantize", _wrapped),
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_in_a_stage_is_named_at_that_stage(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    module, name, wrong = STAGES[stage]
    owner = importlib.import_module(module)
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    with pytest.raises(ParityError, match=f"the first stage that differs is '{stage}'") as caught:
        export_onnx(str(checkpoint), tmp_path / "m.onnx", ladder=True)
    assert caught.value.stage == stage
    assert list(tmp_path.iterdir()) == []


def _simplifies(monkeypatch: pytest.MonkeyPatch, change: Callable[[ModelProto], Simplified]) -> None:
    """Put a function in onnxsim's place."""
    given: list[ModelProto] = []
    monkeypatch.setattr(Simplifier, "start", lambda self, model, data: given.append(model))
    monkeypatch.setattr(Simplifier, "result", lambda self: change(given[-1]))


def test_a_simplifier_that_changes_the_outputs_is_not_taken(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _simplifies(monkeypatch, lambda model: Simplified(_break(copy.deepcopy(model))))
    report = export_onnx(str(checkpoint), tmp_path / "m.onnx")
    assert report.unsimplified_because.startswith("onnxsim changed the outputs by ")
    assert report.unsimplified_because in caplog.text
    assert [each.stage for each in report.ladder] == ["layers folded", "onnx", "graph folded"]
    assert all(each.passed for each in report.ladder)


def _runs(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Note the files that are run."""
    run: list[bytes] = []
    real = msn_deploy.pipeline.source.in_ort

    def noted(model: OpenModel, **options: Any) -> Any:
        run.append(model.data)
        return real(model, **options)

    for module in (msn_deploy.pipeline.export, msn_deploy.pipeline.source):
        monkeypatch.setattr(module, "in_ort", noted)
    return run


@pytest.mark.parametrize("changed", [False, True])
def test_a_graph_that_the_simplifier_left_as_it_was_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    def changing(model: ModelProto) -> Simplified:
        copied = copy.deepcopy(model)
        for node in copied.graph.node:
            node.name = f"other {node.name}"
        return Simplified(copied) if changed else Simplified(model, unchanged=True)

    _simplifies(monkeypatch, changing)
    run = _runs(monkeypatch)
    source = _own(tmp_path, "self.norm(self.conv(x))")
    *_, folded, simplified = export_onnx(source, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8)).ladder
    assert (simplified.stage, simplified.passed) == ("simplified", True)
    assert len(run) == (3 if changed else 2)
    assert (simplified.limit == "the same graph") == (not changed)
    assert changed or (simplified.worst, simplified.sqnr_db) == (folded.worst, folded.sqnr_db)
    assert onnx.load(str(tmp_path / "m.onnx")).graph.node[0].name.startswith("other") == changed


def test_the_parity_is_measured_on_the_very_bytes_that_are_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _runs(monkeypatch)
    export_onnx(str(checkpoint), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() in run
    run.clear()
    export_onnx(str(checkpoint), tmp_path / "raw.onnx", fold=False)
    assert run == [(tmp_path / "raw.onnx").read_bytes()]


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        ("self.conv(x).sum().item()", "the network returns float, in which there is no tensor"),
        ("self.conv(x).detach().numpy()", "the network returns ndarray, "),
        (
            "self.conv(x)[:, torch.tensor([7])]",
            r"the network does not run on input \(1, 3, 8, 8\): IndexError",
        ),
    ],
)
@pytest.mark.parametrize("fold", [True, False])
def test_a_network_that_can_be_traced_and_does_not_run_is_refused(
    tmp_path: Path, forward: str, why: str, fold: bool
) -> None:
    source = _own(tmp_path, forward)
    with pytest.raises(InputError, match=why):
        export_onnx(source, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8), fold=fold, opset=18)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(("options", "images"), [({}, 1), ({"batch": 2}, 2), ({"dynamic_batch": True}, 2)])
def test_an_open_batch_is_tried_with_two_images(tmp_path: Path, options: dict[str, Any], images: int) -> None:
    source = _own(tmp_path, "self.norm(self.conv(x))")
    shape = (options.get("batch", 1), 3, 80, 80)
    options = {key: value for key, value in options.items() if key != "batch"}
    report = export_onnx(source, tmp_path / "m.onnx", input_shape=shape, **options)
    assert report.parity_on == f"{images} random inputs"


def test_the_whole_ladder_and_the_certificate(checkpoint: Path, tmp_path: Path) -> None:
    told: list[float] = []
    report = export_onnx(
        str(checkpoint),
        tmp_path / "m.onnx",
        ladder=True,
        progress=lambda done, total, note="": told.append(done / total),
    )
    assert told == sorted(set(told))
    assert (len(told), told[0]) == (6, 0)
    stages = ["layers folded", "onnx", "graph folded", "simplified", "fp16", "int8"]
    assert [each.stage for each in report.ladder] == stages
    assert all(each.passed for each in report.ladder)
    assert [each.sqnr_db > 60 for each in report.ladder] == [True] * 5 + [False]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".msn-deploy", "m.fold.json", "m.onnx", "m.onnx.json")
    ]
    value = json.loads((tmp_path / "m.fold.json").read_text())
    assert value["schema"] == "msn-deploy-fold/1"
    assert [norm["rule"] for norm in value["norms"]] == ["into-weight"] * 3
    for norm in value["norms"]:
        assert norm["difference"] < 1e-12 * max(1, norm["of"])
        assert norm["sigma"] <= norm["sigma_svd"] * (1 + 1e-6)
        assert norm["sigma"] > 0.5 * norm["sigma_svd"]
    model = onnx.load(str(tmp_path / "m.onnx"))
    info = json.loads(model.metadata_props[0].value)
    assert info["graph"] == structural_hash(model)


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.uniform_()

    def forward(self, x):
        return FORWARD
"""


def _own(tmp_path: Path, forward: str) -> str:
    path = tmp_path / "net.py"
    path.write_text(NET.replace("FORWARD", forward))
    return f"{path}:Net"


def test_a_norm_that_stays_is_an_error_where_none_may(tmp_path: Path) -> None:
    source = _own(tmp_path, "self.conv(torch.relu(self.norm(torch.sigmoid(x))))")
    options: dict[str, Any] = {"input_shape": (1, 3, 8, 8)}
    report = export_onnx(source, tmp_path / "m.onnx", **options)
    assert report.certificate is not None
    assert [(norm.norm, norm.code) for norm in report.certificate.kept] == [("norm", "PADDED_BORDER")]
    assert not report.folded
    with pytest.raises(FoldError, match=r"1 of 1 norms can't be folded, the first: norm \(PADDED_BORDER: ") as caught:
        export_onnx(source, tmp_path / "other.onnx", require_fully_folded=True, **options)
    assert caught.value.code == "PADDED_BORDER"
    assert not (tmp_path / "other.onnx").exists()
    export_onnx(_own(tmp_path, "self.norm(self.conv(x))"), tmp_path / "n.onnx", require_fully_folded=True, **options)


def test_a_fold_that_is_wrong_by_little_is_caught_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By too little for the parity of float32 outputs to see."""
    real = msn_deploy.graph.certificate.values_float64

    def wrong(models: list[Any], feeds: Any, wanted: Any) -> Any:
        for found in real(models, feeds, wanted):
            before, after = found.values
            last = found.feed == len(msn_deploy.graph.certificate.INPUTS) - 1  # at the corners alone
            yield replace(found, values=(before, after + 1e-7 if last else after))

    monkeypatch.setattr(msn_deploy.graph.certificate, "values_float64", wrong)
    source = _own(tmp_path, "self.norm(self.conv(x))")
    with pytest.raises(GateError, match=r"the fold of norm moves values of .* by 1e-07 in float64"):
        export_onnx(source, tmp_path / "m.onnx", input_shape=(1, 3, 8, 8))
    assert not (tmp_path / "m.onnx").exists()


def test_files_of_others_are_folded_and_keep_their_opset(tmp_path: Path) -> None:
    source = _own(tmp_path, "self.norm(self.conv(x))")
    export_onnx(source, tmp_path / "raw.onnx", input_shape=(1, 3, 8, 8), fold=False, opset=18)
    raw = onnx.load(str(tmp_path / "raw.onnx"))
    assert "BatchNormalization" in {node.op_type for node in raw.graph.node}
    report = export_onnx(str(tmp_path / "raw.onnx"), tmp_path / "folded.onnx")
    assert report.operators == {"Conv": 1}
    assert [rung.stage for rung in report.ladder] == ["graph folded", "simplified"]  # the file itself is the truth
    assert report.certificate is not None
    assert [norm.rule for norm in report.certificate.norms] == ["into-producer"]
    folded = onnx.load(str(tmp_path / "folded.onnx"))
    assert [entry.version for entry in folded.opset_import] == [18]
    direct = export_onnx(source, tmp_path / "direct.onnx", input_shape=(1, 3, 8, 8), opset=18)
    assert direct.operators == report.operators
    assert structural_hash(onnx.load(str(tmp_path / "direct.onnx"))) == structural_hash(folded)
