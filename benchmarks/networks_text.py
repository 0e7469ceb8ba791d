"""What the docs say of benchmarks/networks: docs/results/networks.md of run.py, docs/guides/int8.md of diff.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

STEPS = ("export", "calibrate", "fp16", "int8", "bench")


def page(recorded: Path) -> str:
    """Return docs/results/networks.md: a row per network, and what those that stopped said."""
    rows = json.loads((recorded / "networks.json").read_text(encoding="utf-8"))["rows"].values()
    whole = [row for row in rows if _is_whole(row)]
    states = Counter(_state(row, step) for row in rows for step in STEPS)
    parts = [
        "# Networks that others wrote",
        "Measured by `make networks`: networks of public packages with random weights and shaken BatchNorm statistics, "
        "and ONNX files that ship in packages. Each goes through `export` with folding, `calibrate` on random inputs, "
        "`build-engine` in FP16 and INT8 with TensorRT-RTX (engines are built and read, there is no GPU to run them) "
        "and `bench` in ONNX Runtime.",
        f"{len(whole)} of {len(rows)} networks go through all of it. Of {sum(states.values())} steps {states['ok']} "
        f"are done, {states['refused']} refused with a reason, {states['error']} ended in an error of msn-deploy.",
        "`exact`: largest error of our file on ONNX Runtime against torch in float64, over its largest value; "
        "and that of torch's exporter. `nodes`: ours, behind onnxsim, behind onnxslim. `left`: norms that stay, and "
        "why. GELU is several nodes in opset 17, which TensorRT 8 still reads, and one in 20. A file of others has no "
        "torch network: it is compared with itself.",
        "\n".join([_line(_HEAD), _line(["---"] * len(_HEAD)), *map(_row, rows)]),
    ]
    said = [f"- {row['name']}, {step}: {_reason(row, step)}" for row in rows for step in STEPS if _reason(row, step)]
    if said:
        parts += ["## What was refused, and what was left out", "\n".join(said)]
    parts += ["## What `export` costs", *_cost(json.loads((recorded / "export-cost.json").read_text(encoding="utf-8")))]
    return "\n\n".join(parts) + "\n"


def injected(result: Path) -> str:
    """Return what docs/guides/int8.md says of a result of diff.py."""
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"].values()
    cases = [case for row in rows for case in row["cases"]]
    named, draws = sum(case["named"] for case in cases), len(cases) // len(rows)
    return (
        f"`diff` names the layer in which an error was injected in {named} of {len(cases)} cases: {len(rows)} networks "
        f"of [the networks suite](../results/networks.md), and from each a layer drawn at random, {draws} times. Its "
        "weights are multiplied by 1.1 in a file in which every tensor has another name: it is the only one that is "
        "off. The scale of its weight is multiplied by 1.5 in the INT8 file: it adds most. Raw, by `python "
        f"benchmarks/networks/diff.py`: `benchmarks/results/{result.parent.name}/{result.name}`."
    )


def _cost(result: dict[str, Any]) -> list[str]:
    """Return what `make export-cost` found."""
    rows = [
        [
            case["network"], str(case["side_px"]), _spread(case["time_ratio"]), _spread(case["memory_ratio"]),
            f"{case['seconds']['ours']:.1f}", f"{case['mib']['ours']:.0f}",
        ]
        for case in result["cases"]
    ]  # fmt: skip
    head = ["network", "px", "time", "memory", "s", "MiB"]
    return [
        "`msn-deploy export` over torch's exporter with onnxsim, below 1 is less: both as commands in a fresh process, "
        f"the making of the network included, in turns ({result['rounds']} rounds; median and range; Intel Xeon, 2 "
        "cores). Ours has the folds, their proof in float64 and the comparison of every stage. The last columns are "
        "ours (`make export-cost`).",
        "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)]),
    ]


def _spread(ratio: list[float]) -> str:
    middle, least, most = ratio
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


_HEAD = ["network", "nodes", "exact", "norms: left", "opset", "INT8 SQNR", "INT8 convolutions", *STEPS, "MiB"]


def _is_whole(row: dict[str, Any]) -> bool:
    return all(_state(row, step) in ("ok", "not there") for step in STEPS)


def _state(row: dict[str, Any], step: str) -> str:
    if "ended" in row:
        return "error"
    return str(row[step]["state"]) if step in row else "not there"


def _row(row: dict[str, Any]) -> str:
    export, peers = row.get("export", {}), row.get("peers", {})
    nodes = "/".join(str(each) for each in (export.get("nodes"), peers.get("onnxsim"), peers.get("onnxslim")) if each)
    exact = export.get("exact")
    off = (
        f"{exact:.0e} ({peers['exact']:.0e})"
        if exact is not None and "exact" in peers
        else _number(export.get("parity"))
    )
    left = ", ".join(f"{count} {code}" for code, count in export.get("left", {}).items()) or "0"
    cells = [row["name"], nodes, off, f"{export.get('norms', '')}: {left}", str(export.get("opset", ""))]
    cells += [
        _number(row.get("calibrate", {}).get("sqnr_db"), ".0f"),
        _number(row.get("int8", {}).get("int8_convs"), "d"),
    ]
    cells += [_state(row, step) for step in STEPS]
    cells += [str(row.get("peak_mib", ""))]
    return _line(cells)


def _number(value: float | None, how: str = ".0e") -> str:
    return "" if value is None else format(value, how)


def _reason(row: dict[str, Any], step: str) -> str:
    if "ended" in row:
        return str(row["ended"]).splitlines()[-1] if step == "export" else ""
    if step not in row:
        return str(row.get("why_not", ""))
    message = str(row[step].get("message", ""))
    return " ".join(message.split())


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
