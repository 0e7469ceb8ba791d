"""Which file of a folder does each sidecar speak of, and is it still the file that was recorded?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.artifacts import PARTIAL_SUFFIX, Sidecar, parse_sidecar, sha256_of
from msn_deploy.core.errors import InputError

_PLAN = ".plan.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One file, by its path from the folder; sidecars have no entry, unless they are damaged or speak of no file.

    sha256: None if it is gone or unreadable. sidecar: what it recorded, None if there is none that can be read.
    """

    name: str
    sha256: str | None
    sidecar: Sidecar | None = None
    verdict: str = "ok"
    why: str = ""

    @property
    def covered(self) -> bool:
        """Whether there is a sidecar, damaged or not, that makes the folder one of a run."""
        return self.verdict != "unknown"


def read_folder(folder: Path) -> list[Entry]:
    """Return the files below a folder in name order, each with what became of it. What a killed run left is no file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != PARTIAL_SUFFIX)
    there = set(files)
    sidecars: dict[Path, Sidecar] = {}
    damaged: dict[Path, str] = {}
    for side in (path for path in files if path.suffix == ".json"):
        try:
            sidecars[side] = parse_sidecar(side, side.read_bytes())
        except OSError as cause:
            damaged[side] = f"cannot be read: {cause.strerror}"
        except InputError as cause:
            damaged[side] = str(cause).splitlines()[0].removeprefix(f"{side} ").rstrip(".")
    sides = _owners(sidecars, there)
    digests = {path: _digest(path) for path in files if path not in sidecars or path in sides}
    _find_renamed(sidecars, sides, digests)
    entries = [_checked(folder, path, sidecars[side], digests.get(path)) for path, side in sides.items()]
    covered = {*sides, *sides.values()}
    for side, why in damaged.items():
        owner = _place(side, plan=side.name.endswith(_PLAN))
        # `NAME.json` may be an artifact itself, with `NAME.json.json` as its sidecar.
        is_artifact = side.with_name(side.name + ".json") in there
        if not is_artifact and (side.name.endswith(_PLAN) or owner in there):
            covered |= {side, owner}
            entries.append(Entry(name=_name(folder, side), sha256=digests.get(owner), verdict="broken", why=why))
    for path in files:
        if path not in covered:
            why = f"speaks of {sidecars[path].file}, which has another sidecar" if path in sidecars else "no sidecar"
            entries.append(Entry(name=_name(folder, path), sha256=digests.get(path), verdict="unknown", why=why))
    return sorted(entries, key=lambda entry: entry.name)


def _owners(sidecars: dict[Path, Sidecar], there: set[Path]) -> dict[Path, Path]:
    """Map each file to the sidecar that lies where its sidecar has to."""
    sides: dict[Path, Path] = {}
    for side, sidecar in sidecars.items():
        owner = _place(side, plan=sidecar.file.endswith(".engine"))
        if owner in there:
            sides[owner] = side
    return sides


def _find_renamed(sidecars: dict[Path, Sidecar], sides: dict[Path, Path], digests: dict[Path, str | None]) -> None:
    """Give each sidecar that is left the file that it names; where that is gone, one of its bytes without a sidecar."""
    used = set(sides.values())
    for side, sidecar in sidecars.items():
        named = side.parent / sidecar.file
        if side in used or named in sides:
            continue
        free = (path for path, digest in digests.items() if digest == sidecar.sha256 and path not in sides)
        sides[named if named in digests else next(free, named)] = side


def _place(side: Path, *, plan: bool) -> Path:
    """Return the file whose sidecar lies at this path."""
    if plan and side.name.endswith(_PLAN):
        return side.with_name(side.name[: -len(_PLAN)] + ".engine")
    return side.with_suffix("")


def _checked(folder: Path, path: Path, sidecar: Sidecar, digest: str | None) -> Entry:
    why = ""
    if not path.is_file():
        why = "the file is gone, its sidecar is still there"
    elif digest is None:
        why = "cannot be read"
    elif digest != sidecar.sha256:
        why = "its bytes are not the ones that its sidecar recorded"
    verdict = "broken" if why else "ok"
    if path.name != sidecar.file and not why:
        why = f"recorded as {sidecar.file}"
    return Entry(name=_name(folder, path), sha256=digest, sidecar=sidecar, verdict=verdict, why=why)


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except InputError:
        return None
