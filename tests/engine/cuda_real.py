"""pycuda, compiled here, and NVIDIA's cuda-bindings, over a CUDA driver without a GPU (fake_libcuda.c).

`make cuda-test` builds both into a folder, which takes minutes and CUDA's nvcc, and notes what ran:
python tests/engine/cuda_real.py FOLDER [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

PYCUDA = "2026.1"
FOLDER = Path(sys.prefix) / "cuda"
PACKAGES = {"PyCuda": "pycuda", "BindingsCuda": "cuda-bindings"}
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

# What a runner does, in the ways in which it can end. Symbols are looked up when they are called: the driver has those
# that are used, not all that a package knows.
_BEGIN = "import os, sys; sys.setdlopenflags(os.RTLD_LAZY); from msn_deploy.engine.cuda import {kind} as Kind\n"
_RUN = """
cuda = Kind(wait={wait!r}, mapped={mapped})
pair = cuda.allocate((4, 3), "float32")
pair.host[:] = 7
cuda.copy(pair, 2, to_device=True)
pair.host[:] *= 1 if {mapped} else 0
cuda.timed(lambda: None)
cuda.copy(pair, 2, to_device=False)
print(cuda.wait(), pair.host[:, 0].tolist(), cuda.stream, flush=True)
"""
ENDS = {
    "closed": "cuda.close()\nprint('end', flush=True)\n",
    "closed twice, by two users": "two = Kind()\ncuda.close()\ntwo.close()\nprint('end', flush=True)\n",
    "left open": "print('end', flush=True)\n",
    "opened again": "cuda.close()\nKind(wait={wait!r}).close()\nprint('end', flush=True)\n",
}


@dataclass(frozen=True)
class Run:
    """What a process did: the calls that the driver saw (and what it printed), and what stands on stderr."""

    calls: list[str]
    stderr: str
    code: int


class Driver:
    """A folder with a libcuda.so.1 that is not one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = Path(__file__).with_name("fake_libcuda.c")
        library = folder / "libcuda.so.1"
        command = ["cc", "-shared", "-fPIC", "-o", library, source, "-ldl", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(command, check=True)
        (folder / "libcuda.so").symlink_to(library.name)

    def run(self, code: str, *, packages: Path | None = None, fail: str = "") -> Run:
        """Run Python code over it; packages: a folder to import from. fail: see fake_libcuda.c."""
        found = [str(packages)] * (packages is not None)
        path = os.pathsep.join([*found, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": path, "FAKE_CUDA_FAIL": fail},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Run(done.stdout.splitlines(), done.stderr, done.returncode)

    def drive(
        self, kind: str, end: str, *, packages: Path, wait: str | None = None, mapped: bool = False, fail: str = ""
    ) -> Run:
        """Open a package, run once, and end in one of ENDS."""
        code = (_BEGIN + _RUN + ENDS[end]).format(kind=kind, wait=wait, mapped=mapped)
        return self.run(code, packages=packages, fail=fail)


def build(folder: Path) -> None:
    """Compile pycuda, and fetch cuda-bindings and what both import, into a folder; nothing if it is there already."""
    if folder.is_dir():
        return
    if shutil.which("nvcc") is None:
        raise SystemExit("pycuda is compiled with CUDA's nvcc, which is not in PATH")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(
            [*_PIP, "download", "--no-deps", "--no-binary=pycuda", f"pycuda=={PYCUDA}"], cwd=work, check=True
        )
        with tarfile.open(work / f"pycuda-{PYCUDA}.tar.gz") as archive:
            archive.extractall(work)
        source = work / f"pycuda-{PYCUDA}"
        (work / "driver").mkdir()
        Driver(work / "driver")
        root = _toolkit(work)
        options = (f"--cuda-root={root}", f"--cudadrv-lib-dir={work / 'driver'}", "--no-cuda-enable-curand")
        subprocess.run([sys.executable, "configure.py", *options], cwd=source, check=True)
        quick = {**os.environ, "CFLAGS": "-O0 -g0"}
        into = ("install", f"--target={part}")
        subprocess.run([*_PIP, *into, "--no-deps", source], env=quick, check=True)
        subprocess.run([*_PIP, *into, "--only-binary=:all:", "cuda-bindings>=12.8", "pytools", "mako"], check=True)
    part.rename(folder)


def _toolkit(work: Path) -> Path:
    """Return where CUDA lies, as nvcc says it: the one in PATH may be a script that calls another."""
    (work / "empty.cu").touch()
    told = subprocess.run(["nvcc", "--dryrun", "-c", "empty.cu"], cwd=work, capture_output=True, text=True, check=True)
    (top,) = re.findall(r"^#\$ TOP=(.+)$", told.stderr, re.M)
    return Path(os.path.realpath(top))


def note(folder: Path) -> dict[str, object]:
    """Drive both packages in every way; return what ran, with which versions, as JSON values."""
    versions = {each.name: each.version for each in distributions(path=[str(folder)])}
    told = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as name:
        driver = Driver(Path(name))
        runs = [
            {"package": package, "end": end, "wait": wait, "mapped": mapped}
            | _in_short(driver.drive(kind, end, packages=folder, wait=wait, mapped=mapped))
            for kind, package in PACKAGES.items()
            for end in ENDS
            for wait, mapped in (("spin", False), ("sleep", True))
        ]
    return {
        "schema": "msn-deploy-cuda-packages/1",
        "driver": "tests/engine/fake_libcuda.c: no GPU, nothing computes",
        "versions": {"nvcc": told.splitlines()[-2].strip(), "python": sys.version.split()[0]}
        | {package: versions[package] for package in PACKAGES.values()},
        "runs": runs,
    }


def _in_short(run: Run) -> dict[str, object]:
    kept = {name: run.calls.count(name) for name in ("retain", "release", "push", "pop", "cuCtxDetach")}
    return {"counts": kept, "stderr": run.stderr, "code": run.code, "calls": ", ".join(run.calls)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    build(asked.folder.absolute())
    if asked.out is not None:
        found = note(asked.folder.absolute())
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found['runs'])} runs noted in {asked.out}")
