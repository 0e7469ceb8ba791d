"""The index of a suite as Markdown: a table, and in plain words where a folded network is faster and where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DASH = "\N{EN DASH}"


def markdown(index: Mapping[str, Any]) -> str:
    """Return the table, what was measured on what, the findings, and the cases that must not be believed."""
    parts = [_table(index), _conditions(index)]
    said = findings(index)
    if said:
        parts.append("\n".join(f"- {sentence} ({numbers})." for sentence, numbers in said))
    invalid = [
        f"- **{case['case']} is invalid**: {_one_line(case['invalid'])}" for case in index["cases"] if case["invalid"]
    ]
    return "\n\n".join([*parts, *(["\n".join(invalid)] if invalid else [])])


def _table(index: Mapping[str, Any]) -> str:
    """One row per network, form and precision; two columns per batch."""
    batches = sorted({case["batch"] for case in index["cases"]})
    references = {case["reference"] for case in index["cases"]} - {""}
    against = references.pop() if len(references) == 1 else "the reference"
    head = ["network", "form", "accuracy", "file"]
    for batch in batches:
        head += [f"batch {batch}, ms", f"against {against}"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for network in dict.fromkeys(case["network"] for case in index["cases"]):
        cases = {case["batch"]: case for case in index["cases"] if case["network"] == network}
        arms = {batch: {arm["name"]: arm for arm in case["arms"]} for batch, case in cases.items()}
        for name in dict.fromkeys(name for each in arms.values() for name in each):
            first = next(each[name] for each in arms.values() if name in each)
            cells = [network, name, f"{100 * first['accuracy']:.2f} %", f"{first['bytes'] / 1024:.0f} KiB"]
            for batch in batches:
                arm = arms.get(batch, {}).get(name)
                cells += _cells(arm, invalid=bool(cases.get(batch, {}).get("invalid")))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(arm: Mapping[str, Any] | None, *, invalid: bool) -> list[str]:
    if arm is None:
        return [_DASH, _DASH]
    mark = " (invalid)" if invalid else ""
    ratio = arm["to_reference"]
    return [f"{arm['median_ms']:.3f}{mark}", _DASH if ratio is None else f"{_ratio(ratio)} {ratio['verdict']}"]


def _conditions(index: Mapping[str, Any]) -> str:
    environment, threads = index["environment"], index["threads"]
    runtime = "TensorRT engines" if index["provider"] == "engine" else f"ONNX Runtime, provider {index['provider']}"
    version = environment.get("versions", {}).get("onnxruntime")
    if version and index["provider"] != "engine":
        runtime = f"ONNX Runtime {version}, provider {index['provider']}"
    machine = environment.get("machine") or environment.get("cpu") or "an unknown machine"
    return (
        f"{runtime}, on {machine}, {threads} thread{'s' * (threads != 1)}; median latency of a query of interleaved "
        "blocks; ratio of times with its 95 % interval, below 1 is faster, in the same precision."
    )


def findings(index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say of every folded row whether it is faster than the reference, and by which numbers.

    A row that is the same graph as the reference is no faster, whatever its ratio came out as. A row that is the same
    graph as a later one has its speed from that graph and not from its norm, so the later one is named.
    """
    said = []
    for network in dict.fromkeys(case["network"] for case in index["cases"]):
        cases = [case for case in index["cases"] if case["network"] == network and not case["invalid"]]
        for row in dict.fromkeys(arm["row"] for case in cases for arm in case["arms"]):
            arms = [(case, arm) for case in cases for arm in case["arms"] if arm["row"] == row and arm["to_reference"]]
            if arms and arms[0][1]["folded"]:
                said.append(_finding(network, row, arms, twin=_twin(row, cases)))
    return said


def _twin(row: str, cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the first row after this one that is the same graph in every case and precision; empty without one."""
    graphs: dict[str, list[str]] = {}
    for case in cases:
        for arm in case["arms"]:
            graphs.setdefault(arm["row"], []).append(arm["graph"])
    rows = list(graphs)
    later = rows[rows.index(row) + 1 :]
    return next((each for each in later if graphs[each] == graphs[row] and all(graphs[row])), "")


def _finding(
    network: str, row: str, arms: list[tuple[Mapping[str, Any], Mapping[str, Any]]], *, twin: str
) -> tuple[str, str]:
    reference = arms[0][0]["reference"]
    ratios = [arm["to_reference"] for _, arm in arms]
    measured = "; ".join(
        f"{arm['precision'].upper()}, batch {case['batch']}: {_ratio(ratio)} {ratio['verdict']}"
        for (case, arm), ratio in zip(arms, ratios, strict=True)
    )
    verdicts = {ratio["verdict"] for ratio in ratios}
    if all(arm["same_graph"] for _, arm in arms):
        what = f"is the same graph as {reference}, so no faster; what differs is noise"
    elif verdicts == {"FASTER"}:
        what = f"is faster than {reference}"
    elif "FASTER" in verdicts:
        what = f"is faster than {reference} in part"
    else:
        what = f"is no faster than {reference}"
    same = f"; {twin} is the same graph as it" if twin else ""
    return f"{network}: {row} {what}{same}", measured


def _ratio(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
