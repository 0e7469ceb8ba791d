"""Is every file of a run folder still what its sidecar recorded, and made from what is there, down to the data?

Files are told apart by their SHA-256, so one that was moved or renamed is still the parent of its children. What is
named is the cause: a file made from one that is broken is not a second fault, it is "stale". Nor is a file damaged that
was made from a parent that has been made anew since: it is "outdated".
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from msn_deploy.core.artifacts import ASIDE, PLAN, Parent, Sidecar, owner_of, parse_sidecar, sha256_of, sidecar_path
from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.opening import read_input
from msn_deploy.core.partials import is_partial
from msn_deploy.model.opened import open_model

_CAUSES = ("broken", "outdated")
_EVENTS = "events.out.tfevents."  # TensorBoard's, of `train --tensorboard`: they grow, and nothing is made from them
Verdict = Literal["ok", "broken", "outdated", "stale", "unknown"]
DataCheck = Callable[[Parent], bool | None]
"""Whether data is what was recorded; None where that can't be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From an artifact to one parent."""

    role: str
    name: str
    """The file, or the data."""
    sha256: str
    """Its first digits."""
    state: Literal["here", "elsewhere", "as recorded", "changed"]
    """here: `name` is its path in the folder, whatever it was called. elsewhere: not in the folder, or data that was
    not looked at. as recorded: data that was looked at."""

    @property
    def is_data(self) -> bool:
        """Whether the parent is a set of images, and no file."""
        return self.role.startswith("data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One file of a run folder, or data that changed."""

    file: str
    verdict: Verdict
    """outdated: as recorded itself, but its parent is another file now. stale: as recorded itself, but made from
    something broken or outdated. unknown: no sidecar describes it."""
    why: str = ""
    kind: str = ""
    parents: tuple[Link, ...] = ()
    depth: int = 0
    """How many generations of parents it has in the folder."""
    changed: bool = False
    """An ONNX file whose metadata was written for another graph."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """One file, by its path from the folder; sidecars have no entry, unless they are damaged or describe no file.

    sha256: None if it is gone or unreadable. sidecar: what it recorded, None if there is none that can be read.
    """

    name: str
    sha256: str | None
    sidecar: Sidecar | None = None
    verdict: Verdict = "ok"
    why: str = ""

    @property
    def covered(self) -> bool:
        """Whether there is a sidecar, damaged or not, that makes the folder one of a run."""
        return self.verdict != "unknown"


def verify_folder(folder: str | os.PathLike[str], *, data: DataCheck | None = None) -> list[Finding]:
    """Check every file below a folder against the sidecars, in name order.

    A file is broken if its bytes differ from its sidecar, if its sidecar cannot be read or describes a file that is
    gone, or if its parents go round in a circle. It is outdated if a parent that is beside it or above it is another
    one now. data: checks the images that artifacts name as parents; without it they are not looked at.
    Raises InputError if the folder holds no sidecar.

    Examples:
        >>> import msn_deploy
        >>> {finding.verdict for finding in msn_deploy.verify_folder("runs")}
        {'ok'}
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder.\n`verify` takes the output folder of a run.")
    entries = read_folder(folder)
    if not any(entry.covered for entry in entries):
        raise InputError(f"{folder} holds no artifact of msn-deploy (no sidecar files).")
    findings = {entry.name: Finding(file=entry.name, verdict=entry.verdict, why=entry.why) for entry in entries}
    places = _Places(entries)
    checked: dict[tuple[str, str], Link] = {}
    for entry in entries:
        if entry.sidecar is None:
            continue
        links = []
        for parent in entry.sidecar.parents:
            if parent.is_data:
                key = (parent.file, parent.sha256)
                if key not in checked:
                    checked[key] = _data_link(parent, data)
                links.append(replace(checked[key], role=parent.role))
            else:
                links.append(places.link(entry, parent))
        finding = replace(findings[entry.name], kind=entry.sidecar.kind, parents=tuple(links))
        other = next((link for link in links if link.state == "changed" and not link.is_data), None)
        if finding.verdict == "ok" and other is not None:
            why = f"made from another {other.name} than the one here"
            if state := places.unfinished(other.name):
                why += f", of a training that is not finished ({state}; `train --resume` takes it up)"
            finding = replace(finding, verdict="outdated", why=why)
        findings[entry.name] = finding
        for link in links:
            if link.state == "here" and findings[link.name].verdict == "unknown":
                why = f"no sidecar; {entry.name} was made from it"
                findings[link.name] = replace(findings[link.name], why=why)
    for link in checked.values():
        if link.state == "changed":
            why = f"these images are no longer those of SHA-256 {link.sha256}"
            findings[link.name] = Finding(file=link.name, verdict="broken", why=why, kind=link.role)
    _walk(findings)
    return [_by_its_graph(folder, findings[name]) for name in sorted(findings)]


def _by_its_graph(folder: Path, finding: Finding) -> Finding:
    """Let the graph tell what an ONNX file is that its sidecar does not speak for."""
    if not finding.file.endswith(".onnx") or finding.verdict in ("ok", "stale"):
        return finding
    try:
        model = open_model(folder / finding.file, step="verify")
    except (InputError, MissingDependency):  # damaged, gone, or nothing here reads it: that is said already
        return finding
    return replace(finding, why=f"{finding.why}; it is {model.in_words}", changed=model.changed)


def first_broken(findings: list[Finding]) -> Finding | None:
    """Return the broken file with the fewest generations before it, else such an outdated one, else None."""
    causes = [finding for finding in findings if finding.verdict in _CAUSES]
    return min(causes, key=lambda each: (_CAUSES.index(each.verdict), each.depth, each.file), default=None)


def _data_link(parent: Parent, data: DataCheck | None) -> Link:
    same = None if data is None else data(parent)
    link = Link(role=parent.role, name=parent.file, sha256=parent.sha256[:12], state="elsewhere")
    return link if same is None else replace(link, state="as recorded" if same else "changed")


class _Places:
    """Where a parent lies: by its bytes, or by what a sidecar says the bytes of a damaged file were."""

    def __init__(self, entries: list[Entry]) -> None:
        self.names = {entry.name: entry for entry in entries}
        self.found: dict[str, list[Entry]] = {}
        self.recorded: dict[str, list[Entry]] = {}
        for entry in sorted(entries, key=lambda each: each.sidecar is None):
            if entry.sha256 is not None:
                self.found.setdefault(entry.sha256, []).append(entry)
            if entry.sidecar is not None:
                self.recorded.setdefault(entry.sidecar.sha256, []).append(entry)

    def link(self, child: Entry, parent: Parent) -> Link:
        """Find the parent of a child: of several files of the same bytes, the one called and placed as recorded.

        A copy without a sidecar comes last: it would end the chain.
        """
        # A file is not made from itself; one of the same bytes can be (an export of what needed no change).
        near = [entry for entry in self._near(child, parent.file) if entry is not child]
        for kind, has in ((self.found, _found), (self.recorded, _recorded)):
            same = next((entry for entry in kind.get(parent.sha256, ()) if entry is not child), None)
            candidates = [*(entry for entry in near if has(entry) == parent.sha256), *filter(None, [same])]
            if candidates:
                here = next((entry for entry in candidates if entry.sidecar is not None), candidates[0])
                return Link(role=parent.role, name=here.name, sha256=parent.sha256[:12], state="here")
        other = [entry for entry in near if entry.sha256 is not None]
        link = Link(role=parent.role, name=parent.file, sha256=parent.sha256[:12], state="elsewhere")
        return replace(link, name=other[0].name, state="changed") if other else link

    def unfinished(self, name: str) -> str:
        """Return the state of a training that is not finished and has made the file; nothing if there is none."""
        stem = name.removesuffix(".safetensors").removesuffix(".history.jsonl")
        state = f"{stem}.state.safetensors"  # see training/loop.py; removed with the last epoch
        return state if stem != name and state in self.names else ""

    def _near(self, child: Entry, name: str) -> list[Entry]:
        """Return the files of a name beside the child and in the folders above it, the nearest first.

        Not those in other folders: several runs of one recipe give files of the same names.
        """
        parts = child.name.split("/")[:-1]
        candidates = ("/".join([*parts[:end], name]) for end in range(len(parts), -1, -1))
        return [self.names[path] for path in candidates if path in self.names]


def _found(entry: Entry) -> str | None:
    return entry.sha256


def _recorded(entry: Entry) -> str | None:
    return None if entry.sidecar is None else entry.sidecar.sha256


def _walk(findings: dict[str, Finding]) -> None:
    """Go from parents to children: fill in depths, call circles broken and what comes from a fault stale."""
    parents = {
        name: {
            link.name
            for link in finding.parents
            if link.state in ("here", "changed") and link.name in findings and link.name != name
        }
        for name, finding in findings.items()
    }
    children: dict[str, set[str]] = {name: set() for name in findings}
    for name, above in parents.items():
        for each in above:
            children[each].add(name)
    ready = _peeled(findings, parents, children)
    for name in ready:
        for child in children[name]:
            findings[child] = replace(findings[child], depth=max(findings[child].depth, findings[name].depth + 1))
    # What is left has a circle above it; without what merely comes from a circle, the circles themselves.
    left = set(findings) - set(ready)
    for name in left - set(_peeled(left, children, parents)):
        if findings[name].verdict == "ok":
            findings[name] = replace(findings[name], verdict="broken", why="its parents go round in a circle")
    causes = sorted((each for each in findings.values() if each.verdict in _CAUSES), key=lambda each: each.depth)
    for cause in causes:
        ahead = [cause.file]
        while ahead:
            for name in children[ahead.pop()]:
                if findings[name].verdict == "ok":
                    findings[name] = replace(findings[name], verdict="stale", why=f"comes from {cause.file}")
                    ahead.append(name)


def _peeled(names: Iterable[str], above: Mapping[str, set[str]], below: Mapping[str, set[str]]) -> list[str]:
    """Return the names that no circle lies above, each after all that is above it."""
    names = set(names)
    waiting = {name: len(above[name] & names) for name in names}
    ready = sorted(name for name, count in waiting.items() if not count)
    for name in ready:  # grows while it is walked
        for each in sorted(below[name] & names):
            waiting[each] -= 1
            if not waiting[each]:
                ready.append(each)
    return ready


def read_folder(folder: Path) -> list[Entry]:
    """Return the files below a folder in name order, each with what became of it.

    Left out is what is unfinished there, and TensorBoard's files.

    Raises InputError for a folder of sidecars.
    """
    if folder.absolute().name == ASIDE:
        raise InputError(f"{folder} holds the sidecars of the folder above it.\nName that one.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_left_out(path.relative_to(folder)))
    there = set(files)
    sidecars: dict[Path, Sidecar] = {}
    damaged: dict[Path, str] = {}
    for side in (path for path in files if path.suffix == ".json"):
        try:
            sidecars[side] = parse_sidecar(side, read_input(side, "sidecar"))
        except InputError as cause:
            damaged[side] = str(cause).splitlines()[0].removeprefix(f"{side} ").rstrip(".")
    sides = _owners(sidecars, there)
    digests = {path: _digest(path) for path in files if path not in sidecars or path in sides}
    _find_renamed(sidecars, sides, digests)
    entries = [_checked(folder, path, side, sidecars[side], digests.get(path)) for path, side in sides.items()]
    covered = {*sides, *sides.values()}
    for side, why in damaged.items():
        owner = owner_of(side, plan=True)
        # `NAME.json` may be an artifact itself, with a sidecar in either place.
        is_artifact = not there.isdisjoint((sidecar_path(side), side.with_name(side.name + ".json")))
        if not is_artifact and (side.name.endswith(PLAN) or owner in there):
            covered |= {side, owner}
            entries.append(Entry(name=_name(folder, side), sha256=digests.get(owner), verdict="broken", why=why))
    for path in files:
        if path not in covered:
            why = f"describes {sidecars[path].file}, which has another sidecar" if path in sidecars else "no sidecar"
            entries.append(Entry(name=_name(folder, path), sha256=digests.get(path), verdict="unknown", why=why))
    entries += _odd_ones(folder, {entry.name for entry in entries})
    return sorted(entries, key=lambda entry: entry.name)


def _is_left_out(path: Path) -> bool:
    return path.name.startswith(_EVENTS) or is_partial(path)


def _odd_ones(folder: Path, known: Collection[str]) -> Iterator[Entry]:
    """Yield what is neither a file nor a folder: links to what is not there, links to folders, pipes, devices."""
    for path in folder.rglob("*"):
        is_link = path.is_symlink()
        if (
            _name(folder, path) in known
            or is_partial(path.relative_to(folder))
            or os.path.isfile(path)
            or (os.path.isdir(path) and not is_link)
        ):
            continue
        verdict: Verdict = "unknown"
        why = "neither a file nor a folder"
        if is_link:
            gone = not os.path.exists(path)
            verdict = "broken" if gone else "unknown"
            why = f"a link to {os.readlink(path)}, {'which is not there' if gone else 'which is not looked into'}"
        yield Entry(name=_name(folder, path), sha256=None, verdict=verdict, why=why)


def _owners(sidecars: dict[Path, Sidecar], there: set[Path]) -> dict[Path, Path]:
    """Map each file to the sidecar that lies where its sidecar has to."""
    sides: dict[Path, Path] = {}
    for side, sidecar in sidecars.items():
        owner = owner_of(side, plan=sidecar.file.endswith(".engine"))
        if owner in there:
            sides[owner] = side
    return sides


def _find_renamed(sidecars: dict[Path, Sidecar], sides: dict[Path, Path], digests: dict[Path, str | None]) -> None:
    """Give each sidecar that is left the file that it names; where that is gone, one of its bytes without a sidecar."""
    used = set(sides.values())
    free: defaultdict[str | None, deque[Path]] = defaultdict(deque)
    for path, digest in digests.items():
        free[digest].append(path)
    for side, sidecar in sidecars.items():
        named = owner_of(side, plan=False).with_name(sidecar.file)
        if side in used or named in sides:
            continue
        same = free[sidecar.sha256]
        while same and same[0] in sides:
            same.popleft()
        sides[named if named in digests or not same else same[0]] = side


def _checked(folder: Path, path: Path, side: Path, sidecar: Sidecar, digest: str | None) -> Entry:
    why = ""
    if not path.is_file():
        why = f"the file is gone, its sidecar {_name(folder, side)} is still there"
    elif digest is None:
        size = path.stat().st_size
        why = (
            f"it has {size} bytes, its sidecar recorded {sidecar.bytes}" if size != sidecar.bytes else "cannot be read"
        )
    elif digest != sidecar.sha256:
        why = "its bytes are not the ones that its sidecar recorded"
    verdict: Verdict = "broken" if why else "ok"
    if path.name != sidecar.file and not why:
        why = f"recorded as {sidecar.file}"
    return Entry(name=_name(folder, path), sha256=digest, sidecar=sidecar, verdict=verdict, why=why)


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where it can't be read, and of one larger than any file that is made here."""
    try:
        return sha256_of(path, "engine")
    except InputError:
        return None
