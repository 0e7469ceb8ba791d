"""The table of benchmarks/qat.py: what counts as won back, and what is said to be missed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
qat_table = pytest.importorskip("qat_table", reason="needs the source tree")


def _write(folder: Path, case: str, lost: list[tuple[float, float]], arm: str = "BN") -> None:
    for seed, (ptq, qat) in enumerate(lost):
        run = {"title": case, "arm": arm, "seed": seed, "distilled": False, "metric": "accuracy", "images": 364}
        run |= {"float": 0.98, "ptq": 0.98 - ptq / 100, "qat": 0.98 - qat / 100, "epoch": 3, "cpu_minutes": 0.5}
        (folder / f"{case}-{arm}-{seed}.json").write_text(json.dumps({**run, "apart": 2e-7}), encoding="utf-8")


def test_a_share_is_told_where_calibration_loses_and_what_misses_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "hard", [(10.0, 1.0), (11.0, 1.2), (12.0, 1.1)])
    _write(tmp_path, "easy", [(0.3, 0.1), (0.2, 0.1), (0.1, 0.1)])
    _write(tmp_path, "noise", [(3.0, 0.0), (-2.0, 0.0), (1.0, 0.0)])
    _write(tmp_path, "missed", [(10.0, 4.0), (11.0, 4.1), (12.0, 4.2)])
    _write(tmp_path, "worse", [(0.0, 2.0), (0.0, 2.1), (0.0, 1.9)])
    _write(tmp_path, "worse in each", [(0.0, 1.0), (5.0, 6.1), (-5.0, -4.1)])
    text = qat_table.text(tmp_path)
    shares = {line.split(" (")[0].strip("| "): line.split(" | ")[5] for line in text.splitlines() if " | BN, 3" in line}
    assert shares == {"hard": "90 %", "easy": "-", "noise": "-", "missed": "63 %", "worse": "-", "worse in each": "-"}
    assert text.rstrip(".").rpartition(": ")[2] == "missed, BN; worse in each, BN; worse, BN"
    assert "2e-07" in text
    assert "11.00 (+8.52 to +13.48)" in text  # 4.303 * 1 / sqrt(3)


def test_one_seed_has_no_interval_and_no_result_says_what_to_type(tmp_path: Path) -> None:
    assert "benchmarks/qat.py" in qat_table.text(tmp_path)
    _write(tmp_path, "hard", [(10.0, 1.0)])
    assert "| 10.00 | 1.00 | 90 % |" in qat_table.text(tmp_path)


def test_msn_stands_next_to_bn_seed_by_seed(tmp_path: Path) -> None:
    _write(tmp_path, "both", [(10.0, 1.0), (11.0, 1.2), (40.0, 9.0)])
    _write(tmp_path, "both", [(2.0, 1.5), (3.0, 1.6)], arm="MSN")
    rows = [line for line in qat_table.text(tmp_path).splitlines() if "MSN - BN" in line]
    assert [row.split(" | ")[1:5] for row in rows[:1]] == [["MSN - BN, 2", "+0.00", "-8.00", "0.45"]]
