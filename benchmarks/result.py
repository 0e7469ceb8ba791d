"""Where a script's result goes: into the file of `--out`, else to stdout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from msn_deploy.core.artifacts import write_json


def add_out(parser: argparse.ArgumentParser) -> None:
    """Let a script take `--out FILE`."""
    parser.add_argument("--out", type=Path, help="write the JSON here instead of printing it")


def give(result: Any, out: Path | None) -> None:
    """Write a result as JSON, or print it."""
    if out is None:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        write_json(out, result)
