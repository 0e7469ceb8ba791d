"""NVIDIA's own Python bindings of some TensorRT releases, each in a folder of its own: wheels of 1 MB, no library.

`make setup` fetches them: python tests/engine/trt_bindings.py FOLDER
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

# Release in trt_api.json -> the wheel that `make setup` installs: JetPack 6.0, 6.1 and later, 7.0, 7.2.
WHEELS = {
    "8.6.1": "tensorrt-bindings==8.6.1",
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.13.3": "tensorrt-cu12-bindings==10.13.3.9",
    "11.4.0": "tensorrt-cu12-bindings==11.4.0.106",
}
FOLDER = Path(sys.prefix) / "bindings"


def folder_of(release: str, bindings: Path = FOLDER) -> Path:
    """Return where the bindings of a release lie, named by the version of the wheel."""
    return bindings / WHEELS[release].partition("==")[2]


def install(bindings: Path) -> tuple[list[str], bool]:
    """Install the releases that are not there yet; return a line for each that could not be had, and whether to retry.

    No wheel for this Python is final; an index that does not answer is not, and the rest is not asked for.
    """
    missing = []
    for release, wheel in WHEELS.items():
        folder = folder_of(release, bindings)
        if folder.is_dir():
            continue
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        # Wheels only: what the index has as source fetches from elsewhere.
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--retries=1", "--disable-pip-version-check")
        command = [sys.executable, "-m", "pip", "install", *options, f"--target={part}", wheel]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            part.rename(folder)
            continue
        offline = "connection broken" in done.stderr
        why = "the package index does not answer" if offline else done.stderr.strip().rpartition("\n")[2]
        missing.append(f"TensorRT {release} is not tested by its own bindings ({wheel}): {why}")
        if offline:
            return missing, True
    return missing, False


if __name__ == "__main__":
    lines, again = install(Path(sys.argv[1]))
    print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
    sys.exit(again)
