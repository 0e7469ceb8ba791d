"""docs/background/sigma.md says what its results say: constructed results with another outcome give another text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sigma_text

    monkeypatch.delitem(sys.modules, "sigma_text")
    return sigma_text


def _page(text: ModuleType, folder: Path, *, upper: float, gap: float, end: float) -> str:
    looks = [[step, error] for step, error in enumerate([0.04, 0.125, 0.02, 0.0, 0.001, 0.0, 0.0, 0.0])]
    bounds = {"lower": 2.0, "upper": upper, "upper_by_matrix": 2 * upper}
    run: dict[str, Any] = {"looks": looks, "end": {"a": -end, "b": 0.0}, "accuracy": 0.5, "lipschitz": bounds}
    sigma = {"runs": {"unet/1/0": run, "unet/4/0": {**run, "looks": [[0, 0.03]] * 4}}, "cost": {}}
    judged = [
        {"norm": norm, "seed": seed, "accuracy": {"clean": 0.9 + 0.001 * seed + shift}, "lipschitz": bounds}
        for norm, shift in (("bn", 0.0), ("msn", gap))
        for seed in range(3)
    ]
    for at, run in enumerate(judged):
        run["accuracy"]["clean"] += 0.0005 * (at % 2)
    (folder / "sigma.json").write_text(json.dumps(sigma))
    (folder / "robustness.json").write_text(json.dumps({"runs": judged, "epochs": 4}))
    text.RESULTS = folder
    page: str = text.page()
    return page


def test_the_page_follows_its_results(text: ModuleType, tmp_path: Path) -> None:
    page = _page(text, tmp_path, upper=10.0, gap=0.05, end=0.03)
    assert "the largest error of sigma is 3 %" in page
    assert "| 1 | 12.5 | 2.0 | 0.1 | 0.0 | 3 | 50.0 (1) |" in page
    assert "off by 3.0 % at most along the\nway, with one iteration by 12.5 %" in page
    assert "worth nothing" not in page
    assert "MSN is above BN with clean; the other" in page
    other = _page(text, tmp_path, upper=1e7, gap=0.0, end=1e-6)
    assert "of sigma is less than 0.01 %" in other
    assert "worth nothing" in other
    assert "No interval excludes zero" in other
