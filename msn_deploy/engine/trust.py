"""Which plans may be loaded here? A plan is native code: loading one from a stranger runs what the stranger wrote.

The answer is a local list of SHA-256, one JSON object per line. A line is appended by one write to a file opened with
O_APPEND, so writers at the same moment lose nothing and no lock is needed; a line that a killed writer left half is
closed by the line break that every entry begins with, and skipped.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import home_folder

_LOG = logging.getLogger(__name__)


def manifest() -> Path:
    """Return the list: in $MSN_DEPLOY_HOME if it is set, else in $XDG_DATA_HOME/msn-deploy or ~/.local/share/...."""
    return home_folder("data") / "trusted.jsonl"


def trusted() -> frozenset[str]:
    """Return the SHA-256 of all trusted plans. Raises InputError if others may write to the list, or it can't be read.

    What is no entry is skipped: it can only make a plan untrusted.
    """
    path = manifest()
    try:
        with path.open("rb") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o022:
                raise InputError(
                    f"{path}, the list of trusted plans, may be written to by other users, so it says nothing.\n"
                    f"Delete it, or look through it and type: chmod 600 {path}"
                )
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return frozenset()
    except OSError as cause:
        raise InputError(f"{path}, the list of trusted plans, cannot be read: {cause.strerror}.") from cause
    return frozenset(filter(None, map(_sha256_in, lines)))


def add(sha256: str, name: str) -> None:
    """Trust a plan; `name` is kept for whoever reads the list. Raises InputError if the list cannot be written."""
    if sha256 in trusted():
        return
    path = manifest()
    entry = ("\n" + json.dumps({"sha256": sha256, "name": name}) + "\n").encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(handle, entry)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as cause:
        raise InputError(
            f"{path}, the list of trusted plans, cannot be written: {cause.strerror}.\n"
            "Set MSN_DEPLOY_HOME to a folder of your own."
        ) from cause
    if written < len(entry):
        raise InputError(f"{path}, the list of trusted plans, was cut off: the disk is full.\nFree some space.")


def add_built(sha256: str, name: str) -> None:
    """Trust a plan that was just built here. It is whole: a list that cannot be written is no more than a warning."""
    try:
        add(sha256, name)
    except InputError as cause:
        _LOG.warning("%s was built, but running it will need `--trust`: %s", name, str(cause).splitlines()[0])


def _sha256_in(line: bytes) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    return digest if isinstance(digest, str) else None
