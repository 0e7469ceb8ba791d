"""The paper's networks side by side, from the committed result of `msn-deploy suite paper`."""

from __future__ import annotations

import json
from pathlib import Path

from msn_deploy.report.suite import index_from, markdown

RESULT = Path(__file__).resolve().parent / "results" / "epyc-2-cores" / "paper" / "suite.json"


def text(result: Path = RESULT) -> str:
    """Return the section; empty where the suite has not been measured."""
    if not result.is_file():
        return ""
    index = index_from(json.loads(result.read_text(encoding="utf-8")))
    folder = "/".join(result.parent.parts[-4:])
    where = f"`msn-deploy suite {index.suite}`, raw samples in `{folder}`"
    return f"{index.title}: {where}.\n\n{markdown(index)}"
