"""What a suite found, as a record, a Markdown table, plain sentences, and one self-contained HTML page.

The record is `suite.json`: medians, ratios, verdicts, accuracy and size of every row of every case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msn_deploy.bench.stats import Ratio, Verdict
from msn_deploy.machine.environment import Environment
from msn_deploy.report.page import (
    COLOURS,
    DASH,
    decimals_for,
    markdown_table,
    markdown_text,
    measured_on,
    render,
    threads_text,
)
from msn_deploy.report.plots import Comparison, both_cuts, ratio_plot

SCHEMA = "msn-deploy-suite/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteArm:
    """One row in one precision, as in its case's result (see bench.result.ArmResult and bench.measure.ArmFacts).

    ratio, verdict, ratio_interval: against the case's baseline. to_reference: against the reference in the same
    precision; None for the reference itself. same_graph: whether its graph is the reference's.
    """

    name: str
    row: str
    precision: str
    norm: str | None
    folded: bool | None
    accuracy: float
    bytes: int
    graph: str | None
    sha256: str
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    ratio: float
    verdict: Verdict
    ratio_interval: tuple[float, float]
    to_reference: Ratio | None
    same_graph: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteCase:
    """One network at one batch. file: the result of `bench`, None without one. invalid: why not to believe it."""

    case: str
    file: str | None
    network: str
    batch: int
    invalid: str
    baseline: str
    reference: str
    arms: tuple[SuiteArm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteIndex:
    """All cases. machine: as a folder's name. environment: of the first case that was measured."""

    schema: str = SCHEMA
    suite: str
    title: str
    machine: str
    provider: str
    threads: int | None
    environment: Environment
    cases: tuple[SuiteCase, ...]


def index_from(value: Mapping[str, Any]) -> SuiteIndex:
    """Read the JSON values of a suite.json."""
    environment = Environment.from_json(value["environment"])
    return SuiteIndex(**{**value, "environment": environment, "cases": tuple(map(_case_from, value["cases"]))})


def _case_from(value: Mapping[str, Any]) -> SuiteCase:
    ratios = [arm["to_reference"] and Ratio(**arm["to_reference"]) for arm in value["arms"]]
    arms = [SuiteArm(**{**arm, "to_reference": ratio}) for arm, ratio in zip(value["arms"], ratios, strict=True)]
    return SuiteCase(**{**value, "arms": tuple(arms)})


def suite_html(index: SuiteIndex) -> str:
    """Return the page: findings, the ratios they are from in one figure, and a table for each case."""
    drawn = _compared(index)
    return render(
        "suite.html.j2",
        title=index.title or f"Suite {index.suite}",
        measured_on=measured_on(index.environment, index.provider.upper(), threads_text(index.threads)),
        findings=findings(index),
        plot=both_cuts(partial(ratio_plot, drawn)) if drawn else "",
        cases=[(case, decimals_for(arm.median_ms for arm in case.arms)) for case in index.cases],
        environment={key: value for key, value in index.environment.to_json().items() if value is not None},
        suite=index.suite,
    )


def _compared(index: SuiteIndex) -> list[Comparison]:
    """Return what the findings are about: the folded rows of valid cases, against the reference in their precision."""
    networks = list(dict.fromkeys(case.network for case in index.cases))
    return [
        Comparison(
            arm=_spoken(arm.row),
            other=case.reference,
            ratio=arm.to_reference,
            colour=networks.index(case.network) % COLOURS,
            where=f"{_spoken(case.network)}, {arm.precision.upper()}, batch {case.batch}",
            same_graph=arm.same_graph,
        )
        for case in index.cases
        if not case.invalid
        for arm in case.arms
        if arm.folded and arm.to_reference is not None
    ]


def _spoken(name: str) -> str:
    """Return a name that stands within a sentence: "MSN folded, consumer" is "MSN folded (consumer)"."""
    first, _, more = name.partition(", ")
    return f"{first} ({more})" if more else name


def markdown(index: SuiteIndex) -> str:
    """Return the table, what was measured on what, the findings, and the cases that must not be believed."""
    parts = [_table(index), _conditions(index)]
    said = [f"- {markdown_text(sentence)} ({numbers})." for sentence, numbers in findings(index)]
    invalid = [
        f"- **{markdown_text(case.case)} is invalid**: {markdown_text(case.invalid)}"
        for case in index.cases
        if case.invalid
    ]
    return "\n\n".join([*parts, *("\n".join(lines) for lines in (said, invalid) if lines)])


def _table(index: SuiteIndex) -> str:
    """One row per network, form and precision; two columns per batch."""
    batches = sorted({case.batch for case in index.cases})
    references = {case.reference for case in index.cases} - {""}
    against = references.pop() if len(references) == 1 else "the reference"
    head = ["network", "form", "accuracy", "file"]
    for batch in batches:
        head += [f"batch {batch}, ms", f"against {against}"]
    rows = []
    for network in dict.fromkeys(case.network for case in index.cases):
        cases = {case.batch: case for case in index.cases if case.network == network}
        arms = {batch: {arm.name: arm for arm in case.arms} for batch, case in cases.items()}
        for name in dict.fromkeys(name for each in arms.values() for name in each):
            first = next(each[name] for each in arms.values() if name in each)
            cells = [network, name, f"{100 * first.accuracy:.2f} %", f"{first.bytes / 1024:.0f} KiB"]
            for batch in batches:
                cells += _cells(arms.get(batch, {}).get(name), invalid=batch in cases and bool(cases[batch].invalid))
            rows.append(cells)
    return markdown_table(head, rows)


def _cells(arm: SuiteArm | None, *, invalid: bool) -> list[str]:
    if arm is None:
        return [DASH, DASH]
    ratio = arm.to_reference
    return [
        f"{arm.median_ms:.3f}{' (invalid)' * invalid}",
        DASH if ratio is None else f"{_ratio(ratio)} {ratio.verdict}",
    ]


def _conditions(index: SuiteIndex) -> str:
    version = index.environment.versions.get("onnxruntime")
    runtime = f"ONNX Runtime{f' {version}' if version else ''}, provider {index.provider}"
    machine = index.environment.machine or index.environment.cpu or "an unknown machine"
    return (
        f"{'TensorRT engines' if index.provider == 'engine' else runtime}, on {markdown_text(machine)}, "
        f"{threads_text(index.threads)}; median latency of a query of interleaved "
        "blocks; ratio of times with its 95 % interval, below 1 is faster, in the same precision."
    )


def findings(index: SuiteIndex) -> list[tuple[str, str]]:
    """Say of every folded row whether it is faster than the reference, and by which numbers.

    A row that is the same graph as the reference is no faster, whatever its ratio came out as. A row that is the same
    graph as a later one has its speed from that graph and not from its norm, so the later one is named.
    """
    said = []
    for network in dict.fromkeys(case.network for case in index.cases):
        cases = [case for case in index.cases if case.network == network and not case.invalid]
        for row in dict.fromkeys(arm.row for case in cases for arm in case.arms):
            arms = [
                (case, arm, arm.to_reference)
                for case in cases
                for arm in case.arms
                if arm.row == row and arm.to_reference is not None
            ]
            if arms and arms[0][1].folded:
                said.append(_finding(network, row, arms, twin=_twin(row, cases)))
    return said


def _twin(row: str, cases: Sequence[SuiteCase]) -> str:
    """Return the first row after this one that is the same graph in every case and precision; empty without one."""
    graphs: dict[str, list[str | None]] = {}
    for case in cases:
        for arm in case.arms:
            graphs.setdefault(arm.row, []).append(arm.graph)
    rows = list(graphs)
    later = rows[rows.index(row) + 1 :]
    return next((each for each in later if graphs[each] == graphs[row] and all(graphs[row])), "")


def _finding(
    network: str, row: str, arms: Sequence[tuple[SuiteCase, SuiteArm, Ratio]], *, twin: str
) -> tuple[str, str]:
    reference = _spoken(arms[0][0].reference)
    measured = "; ".join(
        f"{arm.precision.upper()}, batch {case.batch}: {_ratio(ratio)} {ratio.verdict}" for case, arm, ratio in arms
    )
    verdicts = {ratio.verdict for _, _, ratio in arms}
    if all(arm.same_graph for _, arm, _ in arms):
        what = f"is the same graph as {reference}, so no faster; what differs is noise"
    elif "FASTER" in verdicts:
        what = f"is faster than {reference}{' in part' * (len(verdicts) > 1)}"
    else:
        what = f"is no faster than {reference}"
    same = f"; {_spoken(twin)} is the same graph as it" if twin else ""
    return f"{_spoken(network)}: {_spoken(row)} {what}{same}", measured


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
