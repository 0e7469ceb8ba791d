"""What docs/results/sweep.md says of the result of sweep.py."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

ALLOWED = 1e-4  # of an output's largest value: what float32 may be away from float64
_KINDS = {
    "module": "modules of torch.nn",
    "function": "functions of torch.nn.functional",
    "tensor": "functions of torch and of tensors",
    "idiom": "idioms of networks",
}

Row = dict[str, Any]


def counts(row: Row) -> bool:
    """Whether torch's own exporter writes a file that ONNX Runtime runs, and with torch's results."""
    return bool(row["torch"]["runs"] and row["torch"]["worst"] <= ALLOWED)


def page(result: Path) -> str:
    """Return docs/results/sweep.md."""
    value = json.loads(result.read_text(encoding="utf-8"))
    rows: dict[str, Row] = value["cases"]
    table = [
        "| | cases | torch's exporter can do | of these, equal | opset 17 or less | above | built by TensorRT-RTX |",
        "|---|---|---|---|---|---|---|",
        *(_row(title, [row for row in rows.values() if row["kind"] == kind]) for kind, title in _KINDS.items()),
        _row("all", [*rows.values()]),
    ]
    missed = {name: row for name, row in rows.items() if counts(row) and row["state"] != "equal"}
    unread = {name: row for name, row in rows.items() if row["state"] == "equal" and row["rtx"]}
    beyond = Counter(row["state"] for row in rows.values() if not counts(row))
    others = [name for name, row in rows.items() if not counts(row) and row["state"] == "refused"]
    reasons = defaultdict(list)
    for name, reason in value["without"].items():
        reasons[reason].append(name)
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    return "\n".join(
        [
            "# What `export` takes",
            "",
            "Measured by `make sweep`. Each case is an operation or idiom behind Conv-BN-ReLU, with random weights and",
            "some negative gains. It counts where torch's own exporter (dynamo, optimised) writes a file that ONNX",
            "Runtime runs with torch's results. Equal: `export` writes one at its default opset, and no output is",
            f"further from torch in float64 than {ALLOWED:g} of its largest value.",
            f"{versions}. Every case: `{result.relative_to(result.parents[3])}`.",
            "",
            *table,
            "",
            f"Of the other {sum(beyond.values())} cases {beyond['refused']} are refused: {', '.join(others)}.",
            "",
            "## Not exported",
            "",
            *_listed(missed, "TensorRT-RTX of torch's own file", "rtx_of_torch"),
            "## Exported and equal, and not read by TensorRT-RTX",
            "",
            *_listed(unread, "TensorRT-RTX", "rtx"),
            "## Without a case",
            "",
            *(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()),
            "",
        ]
    )


def _row(title: str, rows: list[Row]) -> str:
    done = [row for row in rows if counts(row)]
    equal = [row for row in done if row["state"] == "equal"]
    low = sum(row["opset"] <= 17 for row in equal)
    read = sum(row["rtx"] == "" for row in equal)
    return f"| {title} | {len(rows)} | {len(done)} | {len(equal)} | {low} | {len(equal) - low} | {read} |"


def _listed(rows: dict[str, Row], title: str, key: str) -> list[str]:
    if not rows:
        return ["None.", ""]
    lines = [
        f"| case | {'msn-deploy | ' if key != 'rtx' else ''}{title} |",
        f"|---|{'---|' if key != 'rtx' else ''}---|",
    ]
    for name, row in rows.items():
        ours = f"{_cell(row.get('message') or row['state'])} | " if key != "rtx" else ""
        lines.append(f"| {name} | {ours}{_cell(row.get(key) or 'builds it')} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.partition("\n")[0].replace("|", "\\|")
