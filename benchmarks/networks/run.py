"""Networks that others wrote, through export, calibration, engines and `bench`: `make networks`.

Every row is a process with limits on time and memory; rows that are there are kept, so it goes on where it stopped. The
packages lie in an environment of their own, without what they would bring along.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = (
    "torchvision==0.28.0", "timm==1.0.31", "ultralytics==8.4.190", "transformers==5.24.0",
    "segmentation-models-pytorch==0.6.0", "nudenet==3.4.2", "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3",
    "magika==1.0.3", "onnxslim",
    # What importing those needs.
    "huggingface-hub", "tokenizers", "regex", "opencv-python-headless", "pyyaml", "tqdm", "filelock", "fsspec",
    "packaging", "scipy",
)  # fmt: skip
LIMIT_S, LIMIT_BYTES = 900, 12 << 30


def environment(folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Make an environment, once, on top of this one, of packages without what they need; return its Python."""
    python = folder / "bin" / "python"
    mark = folder / "packages.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8") == "\n".join(packages):
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    own = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "base.pth").write_text(f"{own}\n{ROOT}\n", encoding="utf-8")
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages], check=True)
    mark.write_text("\n".join(packages), encoding="utf-8")
    return python


def run_row(python: Path, name: str, folder: Path) -> dict[str, Any]:
    """Run one row in a process of its own and return what it says, or how it ended."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    path = folder / f"{name}.json"
    path.unlink(missing_ok=True)
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "MSN_DEPLOY_HOME": str(folder / "home"),
        "YOLO_OFFLINE": "true",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
    }
    try:
        done = subprocess.run(
            [str(python), str(HERE / "row.py"), name, str(folder)],
            env=env, preexec_fn=limited, timeout=LIMIT_S, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"name": name, "ended": f"more than {LIMIT_S} s"}
    if not path.is_file():
        return {"name": name, "ended": f"exit code {done.returncode}: {done.stderr[-600:]}"}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Run what is not there yet and write the result after every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to run again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "xeon-2-cores" / "networks.json")
    parser.add_argument("--work", type=Path, default=Path("runs/networks"))
    options = parser.parse_args()
    python = environment((ROOT / ".venv" / "networks").resolve())
    listed = subprocess.run(
        [str(python), "-c", "import zoo; print(*zoo.BY_NAME)"], cwd=HERE, env={"PYTHONPATH": str(ROOT)}, check=True,
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    result: dict[str, Any] = {"rows": {}}
    if options.out.is_file():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    for name in options.names or [each for each in listed if each not in result["rows"]]:
        folder = options.work.resolve() / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result["rows"][name] = row = run_row(python, name, folder)
        shutil.rmtree(folder, ignore_errors=True)
        result["rows"] = {each: result["rows"][each] for each in listed if each in result["rows"]}
        result["machine"] = platform.machine()
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        steps = ("export", "calibrate", "fp16", "int8", "bench")
        print(
            name, row.get("ended", ""), *(f"{step}: {row[step]['state']}" for step in steps if step in row), flush=True
        )


if __name__ == "__main__":
    main()
