"""Does every artifact in a folder still match its sidecar, and every parent its child?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from msn_deploy.core.artifacts import PARTIAL_SUFFIX, Sidecar, parse_sidecar, sha256_of
from msn_deploy.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One file of a run folder: verdict "ok", "broken" or "unknown" (no sidecar speaks of it), and why."""

    file: str
    verdict: str
    why: str = ""


def verify_folder(folder: Path) -> list[Finding]:
    """Check every file below a folder against the sidecars, in name order.

    A file is broken if its bytes differ from its sidecar, if its sidecar cannot be read or speaks of a file that is
    gone, or if a parent that lies beside it has changed since. Raises InputError if the folder holds no sidecar.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder.\n`verify` takes the output folder of a run.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != PARTIAL_SUFFIX)
    findings: list[Finding] = []
    covered: set[Path] = set()
    for side in (path for path in files if path.suffix == ".json"):
        name = side.relative_to(folder).as_posix()
        try:
            sidecar = parse_sidecar(side, side.read_bytes())
        except InputError as cause:
            is_plan = side.name.endswith(".plan.json")
            target = side.with_name(side.name[: -len(".plan.json")] + ".engine") if is_plan else side.with_suffix("")
            if is_plan or target.is_file():
                covered.update({side, target})
                findings.append(Finding(file=name, verdict="broken", why=str(cause).splitlines()[0]))
            continue
        target = side.with_name(sidecar.file)
        covered.update({side, target})
        findings.append(_check(folder, target, sidecar))
    if not findings:
        raise InputError(f"{folder} holds no artifact of msn-deploy (no sidecar files).")
    for path in files:
        if path not in covered:
            findings.append(Finding(file=path.relative_to(folder).as_posix(), verdict="unknown", why="no sidecar"))
    return sorted(findings, key=lambda finding: finding.file)


def _check(folder: Path, target: Path, sidecar: Sidecar) -> Finding:
    name = target.relative_to(folder).as_posix()
    if not target.is_file():
        return Finding(file=name, verdict="broken", why="the file is gone, its sidecar is still there")
    if sha256_of(target) != sidecar.sha256:
        return Finding(file=name, verdict="broken", why="its bytes are not the ones that its sidecar recorded")
    for parent in sidecar.parents:
        beside = target.parent / parent.file  # data may be a folder elsewhere, which is no file to compare
        if beside.is_file() and sha256_of(beside) != parent.sha256:
            return Finding(file=name, verdict="broken", why=f"made from another {parent.file} than the one here")
    return Finding(file=name, verdict="ok")
