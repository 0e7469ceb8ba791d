"""Resolve `msn-deploy[jetson,video]` for aarch64 and every Python of a JetPack; fails if one dependency has no wheel.

Writes results/jetson-wheels.json and the pins of Dockerfile.jetson, constraints.jetson.txt.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

from msn_deploy.core.artifacts import sha256_of
from msn_deploy.pipeline.wheels import PYTHONS, gather_wheels

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "jetson-wheels.json"
CONSTRAINTS = ROOT / "constraints.jetson.txt"
_HEAD = "# Written by `make jetson-wheels`: what Dockerfile.jetson installs, by the Python of its base.\n"


def constraints(resolved: dict[str, list[dict[str, str]]]) -> str:
    """Return the pins of what was resolved, each for its Python alone, with the digest of its file for arm64."""
    lines = [
        f"{each['name']}=={each['version']}; python_version == '{python}' --hash=sha256:{each['sha256']}\n"
        for python, files in resolved.items()
        for each in files
    ]
    return _HEAD + "".join(sorted(lines))


def main() -> None:
    resolved = {}
    for python in PYTHONS:
        with tempfile.TemporaryDirectory() as folder:
            files = gather_wheels(Path(folder), source=None, pythons=[python], extras=("runtime", "video"))
            resolved[python] = [
                {
                    "name": re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower(),
                    "version": path.name.removesuffix(".tar.gz").split("-")[1],
                    "file": path.name,
                    "sha256": sha256_of(path),
                }
                for path in files
                if not path.name.startswith("msn_deploy-")  # built from this tree, not resolved
            ]
    RESULT.write_text(json.dumps(resolved, indent=1) + "\n")
    CONSTRAINTS.write_text(constraints(resolved))


if __name__ == "__main__":
    main()
