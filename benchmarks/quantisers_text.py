"""What docs/results/int8.md says of benchmarks/peers/quantisers.py: one row per network and tool."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOOLS = {
    "msn-deploy": "`calibrate`",
    "onnxruntime-symmetric": "ONNX Runtime, for TensorRT",
    "modelopt": "Model-Optimizer, entropy",
    "modelopt-max": "Model-Optimizer, max",
    "trained": "`train --quantize int8`",
    "msn-deploy-onnxruntime": "`calibrate --runtime onnxruntime`",
    "onnxruntime": "ONNX Runtime",
}
"""By the names of peers/quantiser.py; first the files that TensorRT takes."""
FOR_TENSORRT = ("msn-deploy", "onnxruntime-symmetric", "modelopt", "modelopt-max")
HEAD = [
    "| network (metric), norm, seeds | quantiser | points lost | SQNR, dB | kB | Q + DQ nodes | layers in INT8 "
    "| seconds (CPU) |",
    "|---|---|---|---|---|---|---|---|",
]
Run = Mapping[str, Any]


def text(path: Path) -> str:
    """Return the table, and what it comes to."""
    result = json.loads(path.read_text(encoding="utf-8"))
    networks: dict[str, list[Run]] = {}
    for run in result["runs"]:
        networks.setdefault(run["network"], []).append(run)
    lines = list(HEAD)
    for runs in networks.values():
        title = f"{runs[0]['title']} ({runs[0]['metric']}), {runs[0]['arm']}, {len(runs)}"
        rows = [row(TOOLS[tool], runs, tool) for tool in TOOLS if tool in runs[0]["tools"]]
        lines += [f"| {title if at == 0 else ''} | {each} |" for at, each in enumerate(rows)]
    said = [_legend(result), _best(networks), _same_bytes(result["runs"]), _refused(result["runs"])]
    return "\n\n".join(["\n".join(lines), *said])


def row(title: str, runs: Sequence[Run], tool: str) -> str:
    """Return the cells of one tool: means over the seeds."""
    found = [run["tools"][tool] for run in runs]
    if refused := [each["refused"] for each in found if "refused" in each]:
        return f"{title} | it fails: {refused[0]} | | | | |"
    lost = statistics.mean(100 * (run["fp32"] - each["value"]) for run, each in zip(runs, found, strict=True))
    size, wall, cpu = (statistics.mean(each[name] for each in found) for name in ("bytes", "seconds", "cpu_seconds"))
    kept = "" if tool == "trained" else f"{_sqnr(runs, tool):.1f}"
    nodes = _several(f"{each['q']} + {each['dq']}" for each in found)
    placed = _several(_placed(run, each["engine"]) for run, each in zip(runs, found, strict=True))
    return f"{title} | {lost:.2f} | {kept} | {size / 1e3:.0f} | {nodes} | {placed} | {wall:.1f} ({cpu:.1f})"


def _sqnr(runs: Sequence[Run], tool: str) -> float:
    return statistics.mean(run["tools"][tool]["sqnr_db"] for run in runs)


def _placed(run: Run, engine: Run) -> str:
    return "does not build" if "refused" in engine else f"{engine['int8']} of {run['layers']}"


def _several(cells: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(cells))


def _legend(result: Run) -> str:
    pinned = dict(each.split("==") for each in result["packages_of_modelopt"])
    builder = next(
        each["engine"]["builder"] for each in result["runs"][0]["tools"].values() if "builder" in each["engine"]
    )
    loads = [run["load"] for run in result["runs"]]
    least = min(run["images"] for run in result["runs"])
    return (
        f"Means over the seeds. Points lost: of the metric, against the FP32 file, on test splits of {least} images or "
        f"more. Layers in INT8: of the network's convolutions and matrix products, in {builder}. Seconds: the "
        f"quantiser alone, on {result['samples']} images. The machine has 2 cores and ran other work (a load of "
        f"{min(loads)} to {max(loads)}), so the CPU seconds say more. Training runs for {result['epochs']} epochs and "
        "changes the network, so it has no SQNR. ONNX Runtime "
        f"{result['versions']['onnxruntime']}, Model-Optimizer {pinned['nvidia-modelopt']} on ONNX Runtime "
        f"{pinned['onnxruntime']}."
    )


def _best(networks: Mapping[str, Sequence[Run]]) -> str:
    """Say where `calibrate` keeps the most of the files for TensorRT, and which tool keeps more elsewhere."""
    better = []
    for runs in networks.values():
        kept = {
            tool: _sqnr(runs, tool) for tool in FOR_TENSORRT if all("sqnr_db" in run["tools"][tool] for run in runs)
        }
        best = max(kept, key=lambda tool: kept[tool])
        if best != "msn-deploy":
            better.append(f"{runs[0]['title']}: {TOOLS[best]} by {kept[best] - kept['msn-deploy']:.1f} dB")
    return (
        "Of the four that quantise for TensorRT, `calibrate` keeps the highest SQNR on "
        f"{len(networks) - len(better)} of {len(networks)} networks"
        f"{'. Another tool keeps more on ' + '; '.join(better) if better else ''}."
    )


def _same_bytes(runs: Sequence[Run]) -> str:
    pairs: dict[str, list[str]] = {}
    for run in runs:
        for tool, each in run["tools"].items():
            if "two_runs" in each:
                pairs.setdefault(TOOLS[tool], []).append(each["two_runs"])
    others = [
        f"{title}: the same {kind} in {kinds.count(kind)} of {len(kinds)}"
        for title, kinds in pairs.items()
        for kind in sorted({*kinds} - {"bytes"})
    ]
    count = max(map(len, pairs.values()))
    if not others:
        return f"Two runs of a tool, in two processes, write the same bytes: each tool, in all {count} cases."
    return f"Two runs of a tool, in two processes, write the same bytes, except: {'; '.join(others)}."


def _refused(runs: Sequence[Run]) -> str:
    told = {TOOLS[tool] for run in runs for tool, each in run["tools"].items() if "refused" in each.get("engine", {})}
    if not told:
        return "TensorRT-RTX builds every file."
    names = " and ".join(name for name in TOOLS.values() if name in told)
    return f"TensorRT does not take the files of {names}: it reads neither zero points other than 0 nor INT32 biases."
