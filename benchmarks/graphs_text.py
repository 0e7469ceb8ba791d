"""What docs/results/graphs.md says of benchmarks/peers/graphs.py and export_time.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
from graphs_table import table  # a script's neighbour


def _summary(recorded: Path) -> str:
    """Return the first table: our graph of each network against the fastest exact one of a peer."""
    result = json.loads((recorded / "graphs.json").read_text(encoding="utf-8"))
    export = json.loads((recorded / "export-time.json").read_text(encoding="utf-8"))
    rows = [
        "| network | batch 1, 1 core | batch 1, 2 cores | batch 32, 1 core | batch 32, 2 cores |",
        "|---|---|---|---|---|",
    ]
    for entry in result["networks"].values():
        if len(entry["latency"]) == len(result["options"]["batches"]) * len(result["options"]["threads"]):
            rows += _graph_rows(entry)
    environment = result["environment"]
    took = {
        pair: ", ".join(
            "{:.2f} ({:.2f} to {:.2f}) at {} px".format(*case[pair], case["shape"][-1]) for case in export["cases"]
        )
        for pair in ("ours_to_torch", "command_to_script")
    }
    return "\n".join(
        [
            *rows,
            "",
            "Time of our graph over that of the fastest exact graph of torch's exporter, onnxsim, onnxslim and ONNX "
            "Runtime's offline optimiser, with its 95 % interval; ONNX Runtime "
            f'{environment["versions"]["onnxruntime"]} on {environment["cpu"]}, interleaved. "Same graph": '
            "ONNX Runtime runs the very same operators. "
            "Exporting ResNet-18, certificate and ladder included, takes of torch's own exporter's time "
            f"{took['ours_to_torch']} in one process; the command, of a script's that calls that exporter, "
            f"{took['command_to_script']}.",
        ]
    )


def _graph_rows(entry: dict) -> list[str]:
    """Return a row per network of ours: one, or all norms and forms of DenseNet against BN of any peer."""
    ours = [arm for arm in entry["latency"][0]["rows"] if arm.endswith("ours")]
    rows = []
    for arm in ours:
        cells = []
        for case in entry["latency"]:
            row = case["rows"][arm]
            same = row["same_graph"] or arm == case["best"]
            cells.append("same graph" if same else "{:.2f} ({:.2f} to {:.2f})".format(*row["to_best"]))
        norm = entry["norm"] if len(ours) == 1 else f"{arm.removesuffix(': ours')} against BN of any peer"
        rows.append(f"| {entry['net']}, {norm} | {' | '.join(cells)} |")
    return rows


def page(root: Path) -> str:
    """Return docs/results/graphs.md: a summary, then every arm on every machine that it ran on, newest first."""
    results = {
        path: json.loads(path.read_text(encoding="utf-8"))
        for path in (root / "benchmarks" / "results").glob("*/graphs.json")
    }
    parts = [
        "# Graphs of the same networks, by several exporters and optimisers",
        _summary(root / "benchmarks" / "results" / "xeon-2-cores"),
        "## Every arm",
        "Measured by `make peers`. `b1/t2`: batch 1 on 2 cores. `ratio`: to the fastest exact graph of a peer, with "
        "its 95 % interval. `off`: largest difference to torch in float64, over the largest output.",
    ]
    for path, result in sorted(results.items(), key=lambda item: item[1]["environment"]["time_utc"], reverse=True):
        where = path.relative_to(root).as_posix()
        on, day = result["environment"]["cpu"], result["environment"]["time_utc"][:10]
        parts += [f"### {on}, {day}", f"From `{where}`.", table(result)]
    return "\n\n".join(parts) + "\n"
