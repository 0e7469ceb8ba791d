"""What a run has in hand: files and folders that are not finished, each locked by the process that makes them.

The kernel lets go of a lock however its process ends. So what nobody holds was left by a run that was killed, and the
next run in that folder removes it. Age would say nothing: a build takes an hour, and clocks go wrong.

A file system may have no locks (flock(2)), such as a network drive without a lock service. There nothing is removed,
`claimed` lets everyone in, and `exclusive` says that it holds nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msn_deploy.core.errors import InputError

PARTIAL_SUFFIX = ".partial"
_PREFIX = ".msn-"
_NAME = re.compile(re.escape(_PREFIX) + r".+" + re.escape(PARTIAL_SUFFIX), re.DOTALL)
_PATIENCE_S = 30.0  # files change places within a millisecond; whoever holds a folder longer is stopped, or means harm
_POLL_S = 0.005
_CLAIM_S = 1.0  # a sweep holds what it removes, for less than that
_held: set[tuple[int, int, int]] = set()


def is_partial(path: Path) -> bool:
    """Whether a file, by its path from a run folder, is unfinished, or is in an unfinished folder."""
    return path.suffix == PARTIAL_SUFFIX or any(_NAME.fullmatch(part) for part in path.parts)


@contextmanager
def partial_file(folder: Path) -> Iterator[Path]:
    """Yield a new empty file, readable by its owner alone, to be filled and renamed; else it is removed in the end.

    Raises OSError where it can't be made.
    """
    path, handle = _made(folder, is_folder=False)
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(handle)


@contextmanager
def partial_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder for what a run needs only while it works (None: the machine's temporary folder).

    What killed runs have left beside it is removed first. Raises InputError where it can't be made.
    """
    parent = _temporary() if parent is None else parent
    sweep(parent)
    try:
        path, handle = _made(parent, is_folder=True)
    except OSError as cause:
        raise InputError(
            f"{parent} cannot be written: {cause.strerror}.\nSet TMPDIR to a folder of your own with some space."
        ) from cause
    key = _key(handle)
    _held.add(key)  # what is published in it needs the same lock
    try:
        yield path
    finally:
        _held.discard(key)
        shutil.rmtree(path, ignore_errors=True)  # what an orphan still writes there goes with the next sweep
        os.close(handle)


def _temporary() -> Path:
    """Return the machine's folder for temporary files.

    Where Python looks for one itself, it writes a file into it to try it, and a run that is killed then leaves that.
    """
    if tempfile.tempdir is None:
        wanted = (*filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp", "/var/tmp")
        usable = (each for each in wanted if os.path.isdir(each) and os.access(each, os.W_OK | os.X_OK))
        tempfile.tempdir = next(map(os.path.abspath, usable), None)
    return Path(tempfile.gettempdir())


def sweep(folder: Path) -> None:
    """Remove what killed runs have left in a folder (not below it): what carries our name and no process holds."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:  # not there, or it can't be listed
        return
    for path in found:
        with suppress(OSError):  # BlockingIOError: it is held; others: it can't be told, or is gone
            _remove_if_left(path)


def _remove_if_left(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return
    # To lock a file for oneself alone, NFS wants it open for writing.
    access = os.O_RDONLY | os.O_DIRECTORY if stat.S_ISDIR(mode) else os.O_RDWR
    handle = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_still(path, handle):
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _made(folder: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a file or folder and lock it; a sweep between the two takes it for one that was left, so try again."""
    while True:
        if is_folder:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=PARTIAL_SUFFIX, dir=folder))
            try:
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
        else:
            handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=PARTIAL_SUFFIX, dir=folder)
            path = Path(name)
        with suppress(OSError):  # no locks here
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_still(path, handle):
            return path, handle
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the path is still that of an open file or folder."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Hold a folder while its files change places; no other process or thread can hold it meanwhile.

    Yields whether it is held: False where there are no locks, or the folder can't be opened. Who holds it already may
    hold it again. Raises InputError if another process doesn't let go of it.
    """
    handle = None
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if handle is None:
        yield False
        return
    try:
        key = _key(handle)
        if key in _held:
            yield True
            return
        if not _locked(handle, _PATIENCE_S, f"{folder} is held by another process"):
            yield False
            return
        _held.add(key)
        try:
            yield True
        finally:
            _held.remove(key)
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the handle, too
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Be the only run that makes a file, for as long as that takes. Its folder is made for it.

    Raises InputError if another run is at it.
    """
    mark = path.with_name(f"{_PREFIX}{path.name}{PARTIAL_SUFFIX}")
    refusal, is_new = f"another process is making {path} right now", not os.path.isdir(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _locked(handle, _CLAIM_S, refusal)
            except BaseException:
                os.close(handle)
                raise
            if _is_still(mark, handle):
                break
            os.close(handle)
    except OSError as cause:
        raise InputError(f"{path} cannot be written: {cause.strerror}.\nChoose another place with `--out`.") from cause
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()
            if is_new:
                path.parent.rmdir()  # nothing was made
        os.close(handle)


def _key(handle: int) -> tuple[int, int, int]:
    """Return what a thread holds when it has locked an open file or folder."""
    found = os.fstat(handle)
    return found.st_dev, found.st_ino, threading.get_ident()


def _locked(handle: int, patience_s: float, refusal: str) -> bool:
    """Lock an open file, waiting for whoever holds it; False where there are no locks. Raises InputError."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise InputError(
                    f"{refusal}.\nWait until it has ended, or choose another place with `--out`."
                ) from None
            time.sleep(_POLL_S)
        except OSError:
            return False
        else:
            return True
