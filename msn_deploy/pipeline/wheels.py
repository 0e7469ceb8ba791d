"""Which wheels install msn-deploy on a Jetson, and where do they come from? pip chooses, from a folder or an index.

TensorRT comes with JetPack and torch is not needed there, so neither may come along. pycuda has no wheels: its source
goes with what builds it, and is compiled on the device.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from email.parser import BytesHeaderParser
from importlib import metadata
from pathlib import Path
from typing import IO

from packaging.requirements import InvalidRequirement, Requirement

import msn_deploy
from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.machine.jetpacks import JETPACKS

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
PYTHONS = tuple(dict.fromkeys(jetpack.python for jetpack in JETPACKS if jetpack.runs_package))
_FORBIDDEN = re.compile(r"(tensorrt|torch|nvidia)", re.I)
_BUILDS_PYCUDA = ("setuptools", "wheel")
_MOST_BYTES = 1 << 22  # of metadata, with the description
_DISTRIBUTION = "msn-deploy"


def gather_wheels(
    folder: Path,
    *,
    source: Path | None,
    pythons: Sequence[str],
    extras: Collection[str] = ("runtime",),
    progress: Progress = silent,
) -> list[Path]:
    """Fill a folder with the wheels for each Python (such as "3.10") on aarch64, and return them in name order.

    source: a folder of wheels, which has to hold all that is needed; None takes the index. extras: of msn-deploy.
    Raises InputError with what pip says is missing, or names a TensorRT or torch that would come along, or a file of
    `source` whose requirements cannot be read; MissingDependency if there is no pip.
    """
    if source is not None and not source.is_dir():
        raise InputError(f"{source} is not a folder.\n`--wheels` takes a folder of .whl files.")
    for path in sorted(source.glob("*.whl")) if source is not None else ():
        _requirements(path)
    index = [] if source is None else ["--no-index", "--find-links", str(source.resolve())]
    _own_wheel(folder, source, index)
    wanted = [*device_requirements(extras), *_pycuda_source(folder, source)]
    for at, python in enumerate(pythons):
        progress(at, len(pythons), f"wheels for Python {python}")
        if not re.fullmatch(r"3\.\d{1,2}", python):
            raise InputError(f"--python {python!r} is not a Python version such as 3.10.")
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        options = ["--only-binary=:all:", "--python-version", python, *platforms, *index, "-d", str(folder)]
        _pip("download", *options, "--", *wanted)
    found = sorted(folder.iterdir())
    forbidden = [path.name for path in found if _FORBIDDEN.match(path.name)]
    if forbidden:
        raise InputError(f"{forbidden[0]} must not go to a Jetson: JetPack's own is the one that fits.")
    return found


def device_requirements(extras: Collection[str] = ("runtime",)) -> list[str]:
    """Return what msn-deploy needs with these extras; no markers, which pip reads for the Python it runs in."""
    found = []
    for line in metadata.requires(_DISTRIBUTION) or ():
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            found.append(requirement.strip())
    return sorted(set(found))


def _own_wheel(folder: Path, source: Path | None, index: Sequence[str]) -> None:
    """Put msn-deploy's own wheel in place: the one that is given, else built from the source tree this runs from."""
    given = sorted(source.glob("msn_deploy-*.whl")) if source is not None else []
    tree = Path(msn_deploy.__file__).resolve().parents[1]
    if given:
        shutil.copy(given[-1], folder)
    elif (tree / "pyproject.toml").is_file():
        _pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree)
    else:
        _pip("download", "--no-deps", *index, "-d", folder, f"{_DISTRIBUTION}=={msn_deploy.__version__}")


def _pycuda_source(folder: Path, source: Path | None) -> list[str]:
    """Put pycuda's source in place; return what builds it and what it imports.

    A given folder without it makes a bundle whose engines run in trtexec alone.
    """
    if source is None:
        _pip("download", "--no-deps", "--no-binary", "pycuda", "-d", folder, "pycuda>=2025.1.2")
    else:
        for path in sorted(source.glob("pycuda-*.tar.gz"))[-1:]:
            shutil.copy(path, folder)
    for path in folder.glob("pycuda-*.tar.gz"):
        return [*_BUILDS_PYCUDA, *_requirements(path)]
    return []


def _requirements(path: Path) -> list[str]:
    """Return what a wheel or a .tar.gz needs without its extras; InputError if that is more than names and versions.

    pip would take another line as an option, and would fetch and build what an address leads to, `--no-index` or not.
    """
    try:
        text = _metadata_of(path)
    except (LookupError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as cause:
        raise InputError(f"{path} has no readable metadata ({type(cause).__name__}).\nDownload it again.") from cause
    found = []
    for line in BytesHeaderParser().parsebytes(text).get_all("Requires-Dist", ()):
        try:
            found.append(Requirement(str(line)))
        except InvalidRequirement as cause:
            what = f"asks for what is not a package: {str(line)[:200]!r}"
            raise InputError(f"{path} {what}.\nDo not use that file.") from cause
        if found[-1].url:
            what = f"asks for {found[-1].name} from an address: {str(line)[:200]!r}"
            raise InputError(f"{path} {what}.\n`bundle` takes packages by name. Do not use that file.")
    return [str(each) for each in found if "extra" not in str(each.marker)]


def _metadata_of(path: Path) -> bytes:
    """Return METADATA of a wheel, or PKG-INFO of a .tar.gz. Raises as the modules that read them; LookupError."""
    with ExitStack() as opened:
        packed: IO[bytes] | None
        if path.suffix == ".whl":
            wheel = opened.enter_context(zipfile.ZipFile(path))
            names = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            packed = opened.enter_context(wheel.open(names[0]))
        else:
            archive = opened.enter_context(tarfile.open(path))
            packed = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
        content = packed.read(_MOST_BYTES + 1) if packed is not None else b""
    if not 0 < len(content) <= _MOST_BYTES:
        raise LookupError("no file of a size that metadata has")
    return content


def _pip(*args: str | Path) -> None:
    """Run pip and say what it said if it failed."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, args)]
    with partial_folder() as scratch:  # what pip leaves where it is killed goes with it
        env = {**os.environ, "TMPDIR": str(scratch)}
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise MissingDependency("`bundle` needs pip to choose the wheels.\nInstall it with: python -m ensurepip")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
    raise InputError(
        f"pip could not {args[0]} the wheels: {errors[-1].removeprefix('ERROR: ') if errors else 'no reason given'}\n"
        "Give a folder that holds them all, `--wheels DIR`, or pack without: `--no-wheels`."
    )
