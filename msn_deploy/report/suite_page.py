"""The report of a suite: one HTML page with every case, its table and its ratios drawn; loads nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any

from msn_deploy import __version__
from msn_deploy.bench import BenchResult
from msn_deploy.report.page import page
from msn_deploy.report.plots import COLOURS, Comparison, both_cuts, ratio_plot
from msn_deploy.report.suite_text import findings
from msn_deploy.report.tables import DASH, bytes_text, decimals_for, facts_table, table

_HEAD = ("Form", "Accuracy", "Size", "Median (ms)", "p90", "p99", "Ratio", "Verdict", "Graph")
_NUMERIC = (False, True, True, True, True, True, True, False, False)


def suite_html(index: Mapping[str, Any], results: Mapping[str, BenchResult]) -> str:
    """Return the page. results: by name of the case; a case without one is named as invalid."""
    title = index["title"] or f"Suite {index['suite']}"
    environment = index["environment"]
    machine = environment.get("machine") or environment.get("cpu")
    threads = f"{index['threads']} thread{'s' * (index['threads'] != 1)}"
    when = str(environment.get("time_utc") or "").replace("T", " ").replace("+00:00", " UTC")
    meta = [machine, str(index["provider"]).upper(), threads, when]
    line = " \N{MIDDLE DOT} ".join(f'<span class="nb">{escape(str(each))}</span>' for each in meta if each)
    found = "".join(
        f'<li class="finding">{escape(sentence)}.<p class="meta">{escape(numbers)}</p></li>'
        for sentence, numbers in findings(index)
    )
    body = [f'<header><h1>{escape(title)}</h1><p class="meta">{line}</p><ul class="findings">{found}</ul></header>']
    body += [_case(case, results.get(case["case"])) for case in index["cases"]]
    plain = {key: value for key, value in environment.items() if value is not None}
    body.append(f"<section><h2>Measured on</h2>{facts_table('The machine', plain)}</section>")
    body.append(f"<footer><p>msn-deploy {escape(__version__)}, suite {escape(index['suite'])}.</p></footer>")
    return page(title, "\n".join(body))


def _case(case: Mapping[str, Any], result: BenchResult | None) -> str:
    head = f"<h2>{escape(case['network'])}, batch {case['batch']}</h2>"
    if case["invalid"]:
        head += f'<p class="finding AMBIGUOUS"><b>Invalid:</b> {escape(case["invalid"])}</p>'
    if result is None:
        return f"<section>{head}</section>"
    digits = decimals_for(arm["median_ms"] for arm in case["arms"])
    rows = [_row(arm, digits, baseline=case["baseline"]) for arm in case["arms"]]
    drawn = [
        Comparison(arm=arm.name, other=result.baseline, ratio=arm.against_baseline, colour=number % COLOURS)
        for number, arm in enumerate(result.arms)
        if arm.name != result.baseline
    ]
    plot = f"<figure>{both_cuts(partial(ratio_plot, drawn))}</figure>" if drawn else ""
    caption = f"{case['case']}: every form against {case['baseline']}"
    return f"<section>{head}{table(caption, _HEAD, rows, numeric=_NUMERIC)}{plot}</section>"


def _row(arm: Mapping[str, Any], digits: int, *, baseline: str) -> list[str]:
    times = [DASH if arm[key] is None else f"{arm[key]:.{digits}f}" for key in ("median_ms", "p90_ms", "p99_ms")]
    is_baseline = arm["name"] == baseline
    verdict = "baseline" if is_baseline else arm["verdict"]
    return [
        escape(arm["name"]),
        f"{100 * arm['accuracy']:.2f} %",
        bytes_text(arm["bytes"]),
        *times,
        "1" if is_baseline else f"{arm['ratio']:.3f}",
        f'<span class="v {verdict}">{verdict}</span>',
        f'<code class="nb">{escape((arm["graph"] or DASH)[:7])}</code>',
    ]
