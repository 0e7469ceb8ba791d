"""The result of graphs.py as a Markdown table."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table: a row per network and arm, per batch and threads its median and its ratio.

    The ratio is to the fastest exact graph of a peer, with its 95 % interval; "same graph" where ONNX Runtime runs
    that very graph. `result` is the content of a file that graphs.py wrote.
    """
    options = result["options"]
    cases = [(batch, threads) for batch in options["batches"] for threads in options["threads"]]
    names = [f"b{batch}/t{threads}" for batch, threads in cases]
    head = ["network", "arm", "nodes", "KiB", "left of norms", "off"]
    head += [f"{name} {column}" for name in names for column in ("ms", "ratio")]
    lines = [_line(head), _line(["---"] * len(head))]
    for entry in result["networks"].values():
        latency = {(each["batch"], each["threads"]): each for each in entry["latency"]}
        for arm, facts in entry["rows"].items():
            cells = [f"{entry['net']}, {entry['norm']}", _arm(arm, facts)]
            if "nodes" not in facts:
                lines.append(_line([*cells, "", "", "", f"no graph: {facts['note']}", *[""] * (2 * len(cases))]))
                continue
            left = ", ".join(f"{count} {name}" for name, count in facts["norms_left"].items())
            nodes = "/".join(dict.fromkeys(str(count) for count in facts["nodes"].values()))
            cells += [nodes, f"{facts['bytes'] / 1024:.0f}", left, _off(facts)]
            for case in cases:
                cells += _times(latency[case], arm)
            lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _arm(arm: str, facts: dict[str, Any]) -> str:
    notes = []
    if facts.get("given") == "folded first":
        notes.append("folded first")
    if facts.get("from") == "unoptimised":
        notes.append("from the unoptimised graph")
    return f"{arm} ({', '.join(notes)})" if notes else arm


def _off(facts: dict[str, Any]) -> str:
    """Say how far from torch in float64 a graph is, and in which type that was found."""
    if not facts["is_exact"]:
        return f"**WRONG by {facts['exact']:.2g}** ({facts['exact_in']})"
    return f"{facts['exact']:.0e} ({facts['exact_in']})"


def _times(case: dict[str, Any], arm: str) -> list[str]:
    row = case["rows"][arm]
    shown = f"{row['median_ms']:.3g}"
    if row["to_best"] is None:
        return [shown, ""]
    if arm == case["best"]:
        return [shown, "1"]
    if row["same_graph"]:
        return [shown, "same graph"]
    return [shown, "{:.3f} ({:.3f} to {:.3f})".format(*row["to_best"])]
