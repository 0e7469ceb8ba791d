"""What the checkpoints published by the authors of MSN hold, and what they reach on MNIST after import.

    python benchmarks/authors.py FOLDER_OF_T7_FILES MNIST_FOLDER [--out FILE]

The files are those of https://github.com/AntixK/mean-spectral-norm (folder checkpoint). Networks for SVHN are imported
and described, not evaluated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from msn_deploy.core.artifacts import sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.training import import_checkpoint


def row_of(path: Path, mnist: Path, out: Path) -> dict[str, object]:
    row: dict[str, object] = {"file": path.name, "sha256": sha256_of(path)}
    try:
        imported = import_checkpoint(path, out)
    except InputError as cause:
        return {**row, "refused": str(cause).splitlines()[0].replace(str(path), path.name)}
    facts = asdict(imported)
    row |= {key: facts[key] for key in ("net", "norm", "parameters", "recorded_test_accuracy", "epoch")}
    if imported.net.startswith("cnn3"):
        row["measured_test_accuracy"] = round(evaluate(out, data=str(mnist)).accuracy, 6)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("--out", type=Path, help="write the JSON here instead of printing it")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "imported.safetensors"
        rows = [row_of(path, options.mnist, out) for path in sorted(options.files.glob("*.t7"))]
    text = json.dumps({"schema": "msn-deploy-authors/1", "files": rows}, indent=1) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
