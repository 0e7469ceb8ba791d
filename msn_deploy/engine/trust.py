"""Which plans may be loaded here? A plan is native code: loading one from a stranger runs what the stranger wrote.

A local list of SHA-256 says it, one JSON object per line. A line is appended by one write to a file opened with
O_APPEND, so writers at the same moment lose nothing and no lock is needed; a line that a killed writer left half is
closed by the line break that every entry begins with, and skipped.

The list counts only where no other user can have written it: it is a plain file, it and its folder belong to this user
or to root, and nobody else may write to either. What is checked is what was opened.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msn_deploy.core.errors import InputError
from msn_deploy.core.home import home_folder
from msn_deploy.core.reader import parse_json

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 1 << 24
_OPEN = os.O_NONBLOCK | os.O_CLOEXEC  # a pipe is found to be one, and not waited for
_ELSEWHERE = "Set MSN_DEPLOY_HOME to a folder of your own."


def trust_list() -> Path:
    """Return the list: in $MSN_DEPLOY_HOME if it is set, else in $XDG_DATA_HOME/msn-deploy or ~/.local/share/....

    Raises InputError as `home_folder`.
    """
    return home_folder("data") / "trusted.jsonl"


def trusted() -> frozenset[str]:
    """Return the SHA-256 of all trusted plans.

    What is not an entry is skipped: it can only make a plan untrusted. Raises InputError for a list that can't be read,
    or that another user may have written.
    """
    path = trust_list()
    try:
        with _opened(path, os.O_RDONLY) as handle, open(handle, "rb", closefd=False) as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return frozenset()
    except OSError as cause:
        raise InputError(f"{path}, the list of trusted engines, cannot be read: {cause.strerror}.") from cause
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path}, the list of trusted engines, has more than {_MOST_BYTES} bytes.\nDelete it.")
    return frozenset(filter(None, map(_sha256_in, content.splitlines())))


def trust(sha256: str, name: str) -> None:
    """Trust a plan; `name` is kept for whoever reads the list. Raises InputError if the list cannot be written."""
    if sha256 in trusted():
        return
    path = trust_list()
    entry = ("\n" + json.dumps({"sha256": sha256, "name": name}) + "\n").encode()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as handle:
            written = os.write(handle, entry)
            os.fsync(handle)
    except OSError as cause:
        raise InputError(
            f"{path}, the list of trusted engines, cannot be written: {cause.strerror}.\n{_ELSEWHERE}"
        ) from cause
    if written < len(entry):
        raise InputError(f"{path}, the list of trusted engines, was cut off: the disk is full.\nFree some space.")


def trust_built(sha256: str, name: str) -> None:
    """Trust a plan that was just built here. It is complete: a list that cannot be written is only a warning."""
    try:
        trust(sha256, name)
    except InputError as cause:
        _LOG.warning("%s was built, but running it will need `--trust`: %s", name, str(cause).splitlines()[0])


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Yield a handle of the list. Raises OSError, or InputError if another user may have written it."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
    try:
        for its in (os.lstat(path.parent), os.fstat(folder)):  # whoever made a link can lead it elsewhere
            _check_own(path.parent, its, what="the folder of the list of trusted engines", right="go-w")
        if _is_link(path.name, folder):
            raise InputError(f"{path}, the list of trusted engines, is a link, so it says nothing.\nDelete it.")
        handle = os.open(path.name, flags | os.O_NOFOLLOW | _OPEN, 0o600, dir_fd=folder)
        try:
            its = os.fstat(handle)
            if not stat.S_ISREG(its.st_mode):
                raise InputError(f"{path}, the list of trusted engines, is not a plain file.\nDelete it.")
            _check_own(path, its, what="the list of trusted engines", right="600")
            yield handle
        finally:
            os.close(handle)
    finally:
        os.close(folder)


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _check_own(path: Path, its: os.stat_result, *, what: str, right: str) -> None:
    """Raise InputError if another user than this one and root owns it, or may write to it or replace what it holds."""
    if its.st_uid not in (0, os.geteuid()):
        raise InputError(f"{path}, {what}, belongs to another user ({its.st_uid}), so it says nothing.\n{_ELSEWHERE}")
    is_sticky = stat.S_ISDIR(its.st_mode) and its.st_mode & stat.S_ISVTX  # others can add there, and replace nothing
    if its.st_mode & 0o022 and not is_sticky and not stat.S_ISLNK(its.st_mode):
        raise InputError(
            f"{path}, {what}, may be written to by other users, so it says nothing.\n"
            f"Delete the list, or look through it and type: chmod {right} {shlex.quote(str(path))}"
        )


def _sha256_in(line: bytes) -> str | None:
    try:
        entry = parse_json(line, source="the list")
    except InputError:
        return None
    digest = entry.get("sha256") if isinstance(entry, dict) else None
    return digest if isinstance(digest, str) else None
