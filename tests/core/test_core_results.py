"""Results in Python: short when printed, a table in a notebook, and the same plain values as `--json` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from bench_results import realistic

from msn_deploy.bench.result import to_json
from msn_deploy.core.results import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    path: Path
    size: int = 3


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Report(Result):
    model: str
    value: float
    out: Path
    inner: _Inner
    rows: tuple[int, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    missing: str | None = None


REPORT = _Report(
    model="a<b>" + 100 * "x",
    value=0.123456789,
    out=Path("r/net.onnx"),
    inner=_Inner(path=Path("e.engine")),
    rows=(1, 2, 3),
)


def test_a_result_prints_on_a_short_line_without_what_it_does_not_have():
    text = repr(REPORT)
    assert text.startswith("_Report(model=a<b>xxx")
    assert text.endswith("..., value=0.123457, out=r/net.onnx, inner=e.engine, rows=<3>)")
    assert len(text) < 160


def test_a_notebook_shows_a_table_in_which_text_is_text():
    html = REPORT._repr_html_()
    assert html.count("<tr>") == 5
    assert "<b>" not in html
    assert "<th>value</th><td>0.123457</td>" in html


def test_plain_values_are_those_of_json():
    value = REPORT.to_dict()
    assert value["inner"] == {"path": "e.engine", "size": 3}
    assert (value["rows"], value["value"], value["missing"]) == ([1, 2, 3], 0.123456789, None)
    assert json.loads(json.dumps(value)) == value


def test_a_benchmark_shows_a_row_per_model_and_gives_what_its_file_holds():
    result = realistic()
    rows = dict(result.shown())
    assert list(rows)[:4] == [arm.name for arm in result.arms]
    assert f"{result.arms[3].ratio:.3f} of {result.baseline}" in rows[result.arms[3].name]
    assert rows[result.baseline] == f"{result.arms[0].median_ms:.4g} ms"
    assert result.to_dict() == json.loads(to_json(result))
