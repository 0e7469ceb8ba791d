"""Every second case of `make sweep` that passed is exported again, many at a time, and equals torch in float64."""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from msn_deploy.pipeline.export import export_onnx

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TOGETHER = 24
ALONE = {"torch.nonzero", "torch.unique"}  # how many rows they have is decided by single values
EQUAL = 0.98  # of the cases that torch's own exporter can do


def _script(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


SWEEP, CASES, TEXT = _script("sweep"), _script("sweep_cases"), _script("sweep_text")
RESULT = json.loads(SWEEP.OUT.read_text(encoding="utf-8"))
ROWS: dict[str, dict[str, Any]] = RESULT["cases"]


def _groups() -> list[Any]:
    """Return cases of one input and opset, whose networks are exported as one."""
    alike = defaultdict(list)
    for case in CASES.cases()[::2]:
        if ROWS[case.name]["state"] == "equal" and case.name not in ALONE:
            alike[case.shape, ROWS[case.name]["opset"], case.kind == "idiom"].append(case)
    return [
        pytest.param(found[at : at + TOGETHER], opset, id=f"{len(shape) - 2}d-opset{opset}-{found[at].name}")
        for (shape, opset, _), found in alike.items()
        for at in range(0, len(found), TOGETHER)
    ]


class _Together(nn.Module):
    """Operations behind one stem, or idioms beside each other, each with an input that it may write into."""

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        if self.share_a_stem():
            for net in nets:
                net.stem = nets[0].stem

    def share_a_stem(self) -> bool:
        return all(hasattr(net, "behind") for net in self.nets)

    def forward(self, x: torch.Tensor) -> list[Any]:
        if not self.share_a_stem():
            return [net(x.clone()) for net in self.nets]
        y = self.nets[0].stem(x)
        return [net.behind(y) for net in self.nets]


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "opset"), _groups())
def test_what_the_sweep_exported_is_exported_and_equals_torch(tmp_path: Path, cases: list[Any], opset: int) -> None:
    path, x = tmp_path / "net.onnx", SWEEP.input_of(cases[0])
    together = _Together([case.net() for case in cases]).eval()
    with SWEEP.quiet():
        export_onnx(together, path, input_shape=cases[0].shape, simplify=False)
    outputs = SWEEP.in_ort(path, x)
    worst = {}
    for case, net in zip(cases, together.nets, strict=True):
        truth = SWEEP.truth_of(net, x)
        own, outputs = outputs[: len(truth)], outputs[len(truth) :]
        worst[case.name] = SWEEP.worst_difference(truth, own)
    assert outputs == []
    assert {name: found for name, found in worst.items() if found > TEXT.ALLOWED} == {}
    assert [each.version for each in onnx.load(path).opset_import if each.domain == ""] == [opset]


def test_the_result_is_of_all_cases_and_nearly_all_are_equal() -> None:
    assert list(ROWS) == [case.name for case in CASES.cases()]
    assert RESULT["without"] == CASES.uncovered()
    counted = {name: row for name, row in ROWS.items() if TEXT.counts(row)}
    missed = [name for name, row in counted.items() if row["state"] != "equal"]
    assert len(counted) >= 150
    assert len(missed) <= (1 - EQUAL) * len(counted)
    assert [name for name in missed if not ROWS[name].get("rtx_of_torch")] == []
    assert {row["state"] for row in ROWS.values()} <= {"equal", "refused"}
    wrong = {name for name, row in ROWS.items() if row.get("exit") == 1}  # where torch's own file is wrong, too
    assert all(ROWS[name]["torch"]["runs"] for name in wrong - counted.keys())
    assert {row["exit"] for row in ROWS.values() if row["state"] == "refused"} <= {1, 2}


@pytest.mark.parametrize("harm", ["modules", "functions"])
def test_a_name_of_torch_without_recipe_or_reason_is_found(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    table = _script(f"sweep_{harm}")
    monkeypatch.delitem(table.RECIPES, {"modules": "PixelShuffle", "functions": "pixel_shuffle"}[harm])
    with pytest.raises(ValueError, match=r"(PixelShuffle|pixel_shuffle) has neither a recipe nor a reason"):
        CASES.uncovered()


def test_a_difference_is_a_difference() -> None:
    one, two = torch.ones(2, 3).numpy(), torch.tensor([[1, 1, 1], [1, 1, float("nan")]]).numpy()
    assert SWEEP.worst_difference([one], [one]) == 0
    assert SWEEP.worst_difference([two], [two]) == 0
    assert SWEEP.worst_difference([one], [one * 1.5]) == 0.5
    for other in ([], [one[:1]], [two], [one, one]):
        assert SWEEP.worst_difference([one], other) == float("inf")


def test_a_case_is_measured_against_torchs_own_exporter(tmp_path: Path) -> None:
    (case,) = (case for case in CASES.cases() if case.name == "BNNeck")
    row = SWEEP.measured(case, tmp_path, rtx=False, simplify=False)
    assert row["torch"]["runs"]
    assert row["torch"]["worst"] < TEXT.ALLOWED
    assert (row["state"], row["opset"]) == ("equal", 17)
