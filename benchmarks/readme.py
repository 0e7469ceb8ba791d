"""Fill the generated blocks of README.md from committed results; `--check` only tells whether they are up to date.

Run by `make results` after the measurements, and by the tests with `--check`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "xeon-2-cores"


def blocks() -> dict[str, str]:
    """Return the text of every generated block by name."""
    return {
        "demo": _console("make demo", (RESULTS / "demo.txt").read_text(encoding="utf-8")),
        "jetson": _console(
            "msn-deploy build-engine runs/vgg7_msn.onnx --precision int8 --target orin-nano",
            (RESULTS / "jetson.txt").read_text(encoding="utf-8"),
        ),
        "measured": _measured(),
    }


def _console(command: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"```text\n$ {command}\n{lines}\n```"


def _measured() -> str:
    demo = json.loads((RESULTS / "demo-bench.json").read_text(encoding="utf-8"))
    int8 = json.loads((RESULTS / "int8-on-cpu.json").read_text(encoding="utf-8"))
    startup = json.loads((RESULTS / "startup.json").read_text(encoding="utf-8"))
    environment = demo["environment"]
    rows = [
        "| VGG7, digits, batch 1 | median ms | ratio | 95 % interval | verdict |",
        "|---|---|---|---|---|",
        *(_row(arm, demo["baseline"]) for arm in demo["arms"]),
        *(_row({**arm, "name": "MSN INT8, against MSN folded"}, "") for arm in int8["arms"] if "int8" in arm["name"]),
    ]
    return "\n".join(
        [
            *rows,
            "",
            f"ONNX Runtime {environment['versions']['onnxruntime']} on the CPU ({environment['cpu']}, "
            f"{demo['profile']['threads']} threads), interleaved blocks. `msn-deploy --help` takes "
            f"{startup['ratio']:.1f} times as long as `python -c pass`.",
        ]
    )


def _row(arm: dict, baseline: str) -> str:
    if arm["name"] == baseline:
        return f"| {arm['name']} | {arm['median_ms']:.3f} | 1 | | baseline |"
    low, high = arm["ratio_interval"]
    ratio = f"{arm['ratio']:.3f} | {low:.3f} to {high:.3f}"
    return f"| {arm['name']} | {arm['median_ms']:.3f} | {ratio} | {arm['verdict']} |"


def filled(text: str) -> str:
    """Return README text with every generated block replaced."""
    for name, block in blocks().items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        text, count = re.subn(
            pattern, lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md has {count} blocks called {name}, one is needed")
    return text


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        raise SystemExit(0 if filled(text) == text else "README.md is out of date: make readme")
    README.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
