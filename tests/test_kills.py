"""The harness of `make kills`: a few of its kills and pairs, and that it sees damage, mixtures and what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from msn_deploy.core.artifacts import publish, sidecar_path

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def kills() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import kills
    finally:
        sys.path.remove(str(BENCHMARKS))
    return kills


def test_a_sample_of_kills_and_pairs(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    words = ["--kills", "8", "--pairs", "2", "--only", "train", "--only", "calibrate", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "kills.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_bytes())
    assert result["totals"]["kills"] == 8
    assert result["totals"]["pairs"] == 2
    assert {row["by"] for row in result["kills"]} == {"step", "time"}
    assert [path.name for path in tmp_path.iterdir()] == ["kills.json"]


def test_the_harness_sees_half_a_file_and_the_sidecar_of_another(tmp_path: Path, kills: Any) -> None:
    publish(tmp_path / "a.json", b'{"a": 1}', kind="result")
    assert kills.broken_files(tmp_path) == []
    publish(tmp_path / "b.json", b'{"b": 1}', kind="result")
    sidecar_path(tmp_path / "a.json").write_bytes(sidecar_path(tmp_path / "b.json").read_bytes())
    (tmp_path / "c.json").write_bytes(b'{"c": ')
    (tmp_path / "d.jsonl").write_bytes(b'{"c": 1}\n{"c": 1')
    assert [text.split(":")[0] for text in kills.broken_files(tmp_path)] == ["a.json", "c.json", "d.jsonl"]


def test_the_harness_sees_what_is_left(tmp_path: Path, kills: Any) -> None:
    place = kills.Place(tmp_path)
    known = tmp_path / "known"
    known.mkdir()
    (known / "a.json").write_bytes(b"{}")
    place.fresh(known)
    assert place.left(known) == []
    (place.case / "tmp" / "torchinductor_root").mkdir()
    (place.out / ".msn-abc.partial").write_bytes(b"")
    assert place.left(known) == ["out/.msn-abc.partial", "tmp/torchinductor_root"]
