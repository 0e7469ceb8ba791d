"""Files that stages hand on: written atomically, each with a sidecar that names its parents by SHA-256.

The sidecar of `NAME.engine` is `NAME.plan.json`, that of another file to make something from is `FILE.json`. That of a
file to read, such as a report or a picture, is `.msn-deploy/FILE.json`. Both are written first, under other names. Then
they are published in three steps (old sidecar away, file renamed in, new sidecar renamed in), so a killed run leaves
the old file, the new file, or no file; never half of one, and never a sidecar that describes another file. The folder
is locked for these steps, so that two writers of one name can't mix theirs. Where a file system has no locks, the one
that comes last finds out, and fails.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msn_deploy import __version__
from msn_deploy.core.errors import InputError, shown
from msn_deploy.core.opening import Kind, open_input, read_input
from msn_deploy.core.partials import exclusive, partial_file, sweep
from msn_deploy.core.reader import is_file_name, parse_json, record

SCHEMA = 1
PLAN = ".plan.json"
ASIDE = ".msn-deploy"
"""The folder, beside files to read, that holds their sidecars, so that those do not double what one looks through."""
_TO_READ = frozenset((".json", ".jsonl", ".html", ".htm", ".md", ".xml", ".png", ".svg"))
_LOG = logging.getLogger(__name__)
_swept: set[Path] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What an artifact was made from: its role ("checkpoint", "onnx", "data:train", ...), file name and SHA-256.

    Data is not a single file: its `file` is a known name or a folder, its digest is of images, labels and classes as
    they were loaded, and `read` says how they were loaded, so that the digest can be taken again.
    """

    role: str
    file: str
    sha256: str
    read: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_data(self) -> bool:
        """Whether this is a set of images, and no file."""
        return self.role.startswith("data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """The sidecar of one artifact.

    kind: "checkpoint", "onnx", "engine", "bench", "report", ... bytes: size of the file. versions: of the tools that
    made it. config: every option that it depends on, defaults too. facts: what was measured while making it.
    """

    kind: str
    file: str
    sha256: str
    bytes: int
    parents: tuple[Parent, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def sha256_of(path: Path, kind: Kind = "any") -> str:
    """Return the SHA-256 of a file as hex. Raises InputError if it cannot be read, or is too large for its kind."""
    digest = hashlib.sha256()
    with open_input(path, kind) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, delete it if not.

    What killed runs have left in the folder is removed, once in the life of a process.
    """
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)
    with _in_hand(path) as partial:
        yield partial
        _complete(partial)
        os.replace(partial, path)


@contextmanager
def _in_hand(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is deleted if it is still there in the end. Raises InputError.

    folder: of the temporary path, in place of that of `path`, which need not be there then.
    """
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode):  # a rename would replace /dev/null itself
        what = "a folder" if stat.S_ISDIR(mode) else "not a plain file"
        raise InputError(f"{path} is {what}; it cannot be written.\nGive the name of a file.")
    aside, folder = path.parent, folder or path.parent
    if aside.name == ASIDE and (aside.is_symlink() or (os.path.exists(aside) and not os.path.isdir(aside))):
        raise InputError(f"{aside} is a link or a file; sidecars are to be in a folder of that name.\nRemove it.")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(partial_file(folder))
        except OSError as cause:
            raise InputError(
                f"{path} cannot be written: {cause.strerror}.\nChoose another place with `--out`."
            ) from cause
        try:
            yield partial
        except OSError as cause:  # a full disk, or a folder where the file should go
            if not isinstance(cause.errno, int):
                raise
            raise InputError(
                f"{path} cannot be written: {cause.strerror}.\nFree space, or choose another `--out`."
            ) from cause


def _mode_of(path: Path) -> int | None:
    """Return the mode of a file, or None where none is. Raises InputError for a name that no file can have."""
    try:
        return os.stat(path).st_mode  # asked once: another run may remove it between two questions
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:  # its partial file has a shorter name
            raise InputError(f"{path} cannot be written: {cause.strerror}.\nGive a shorter name.") from cause
    return None


def require_names(path: Path) -> None:
    """Raise InputError for a name that is too long for an artifact or its sidecar, before the work for it."""
    for each in (path, sidecar_path(path)):
        _mode_of(each)


def _complete(partial: Path) -> None:
    """Bring a file that is filled to the disk, for everyone to read."""
    with partial.open("ab") as stream:
        os.fsync(stream.fileno())
    partial.chmod(0o644)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write what a tar file holds below a folder. Raises tarfile.TarError for what would get out of it.

    Python before 3.11.4 and 3.10.12, such as Debian 12's, has no filter for that: there only plain files and folders
    with plain names are taken.
    """
    if hasattr(tarfile, "data_filter"):
        archive.extractall(folder, filter="data")
        return
    for member in archive:
        names = Path(member.name).parts
        if not (member.isfile() or member.isdir()) or Path(member.name).is_absolute() or ".." in names:
            raise tarfile.TarError(f"{member.name} is neither a file nor a folder below it")
    archive.extractall(folder)


def json_bytes(value: Any) -> bytes:
    """Return a value as indented JSON."""
    return (json.dumps(value, indent=2, default=str) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically. What killed runs have left in the folder is removed."""
    sweep(path.parent)
    with atomic_file(path) as partial:
        partial.write_bytes(json_bytes(value))


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of an artifact is written."""
    if path.suffix == ".engine":
        return path.with_suffix(PLAN)
    beside = path.with_name(path.name + ".json")
    return beside.parent / ASIDE / beside.name if path.suffix in _TO_READ else beside


def _sidecar_paths(path: Path) -> Iterator[Path]:
    """Yield where the sidecar of an artifact can lie: earlier versions wrote all beside their files."""
    yield (side := sidecar_path(path))
    if side.parent.name == ASIDE:
        yield path.with_name(side.name)


def sidecar_of(path: Path) -> Path:
    """Return where the sidecar of an artifact lies, or would be written."""
    return next(filter(os.path.isfile, _sidecar_paths(path)), sidecar_path(path))


def owner_of(side: Path, *, plan: bool) -> Path:
    """Return the file whose sidecar has this path. plan: it is an engine's, if its name allows that."""
    folder = side.parent.parent if side.parent.name == ASIDE else side.parent
    if plan and side.name.endswith(PLAN):
        return folder / (side.name.removesuffix(PLAN) + ".engine")
    return folder / side.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file that is to be published."""

    path: Path
    content: bytes | Callable[[Path], object]
    """What it holds, or what gets a temporary path and fills it (and doesn't replace it)."""
    kind: str
    parents: Sequence[Parent] = ()
    versions: Sequence[str] = ()
    """Names of installed distributions whose version is recorded."""
    config: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None


def publish(
    path: Path,
    write: bytes | Callable[[Path], object],
    *,
    kind: str,
    parents: Sequence[Parent] = (),
    versions: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Sidecar:
    """Write an artifact and its sidecar, see `Artifact`."""
    artifact = Artifact(
        path=path, content=write, kind=kind, parents=parents, versions=versions, config=config, facts=facts
    )
    return publish_together(artifact)[0]


def publish_together(*artifacts: Artifact, without: Sequence[Path] = ()) -> list[Sidecar]:
    """Write artifacts of one folder that belong to each other, each with its sidecar; return these.

    Of two runs that write the same names at once, all files are of the one or of the other. What killed runs have left
    in the folder is removed. without: files there that describe older ones; they are removed. Raises InputError.
    """
    folder = artifacts[0].path.parent
    sweep(folder)
    with ExitStack() as stack:
        made = [_described(artifact, stack) for artifact in artifacts]
        with exclusive(folder) as alone:
            for path in (*without, *(artifact.path for artifact in artifacts)):
                for side in _sidecar_paths(path):
                    _unlink(side)
            for path in without:
                _unlink(path)
                _drop_empty(sidecar_path(path).parent)
            for artifact, partial, _, described in made:
                side = sidecar_path(artifact.path)
                side.parent.mkdir(exist_ok=True)
                os.replace(partial, artifact.path)
                os.replace(described, side)
        if not alone:
            for artifact, _, sidecar, _ in made:
                _require_own(artifact.path, sidecar)
    for artifact, _, sidecar, _ in made:
        path = artifact.path
        said = f"{sidecar.kind} of {sidecar.bytes} bytes, SHA-256 {sidecar.sha256}"
        _LOG.info("%s: %s", path, said, extra={"written": path})
    return [sidecar for _, _, sidecar, _ in made]


def remove(path: Path) -> None:
    """Remove a file, if it is there, and its sidecar. Raises InputError where one of them cannot be removed."""
    with exclusive(path.parent):
        for each in (*_sidecar_paths(path), path):
            _unlink(each)
        _drop_empty(sidecar_path(path).parent)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as cause:
        raise InputError(
            f"{path} cannot be removed: {cause.strerror}.\nMove it away, and type the command again."
        ) from cause


def _drop_empty(folder: Path) -> None:
    """Remove a folder of sidecars in which there is none any more."""
    if folder.name == ASIDE:
        with suppress(OSError):
            folder.rmdir()


def _described(artifact: Artifact, stack: ExitStack) -> tuple[Artifact, Path, Sidecar, Path]:
    """Fill the file and its sidecar under names that last as long as the stack does."""
    from msn_deploy.core.optional import version_of

    write = artifact.content
    partial = stack.enter_context(_in_hand(artifact.path))
    if isinstance(write, bytes):
        partial.write_bytes(write)
    else:
        write(partial)
    found = {name: version for name in artifact.versions if (version := version_of(name)) is not None}
    sidecar = Sidecar(
        kind=artifact.kind,
        file=artifact.path.name,
        sha256=hashlib.sha256(write).hexdigest() if isinstance(write, bytes) else sha256_of(partial),
        bytes=partial.stat().st_size,
        parents=tuple(artifact.parents),
        versions={"msn-deploy": __version__, **found},
        config=dict(artifact.config or {}),
        facts=dict(artifact.facts or {}),
    )
    _complete(partial)
    described = stack.enter_context(_in_hand(sidecar_path(artifact.path), artifact.path.parent))
    described.write_bytes(_sealed(asdict(sidecar)))
    _complete(described)
    return artifact, partial, sidecar, described


def _require_own(path: Path, sidecar: Sidecar) -> None:
    """Raise InputError if another run has replaced a file where no lock keeps two apart."""
    if sha256_of(path) == sidecar.sha256:
        return
    with suppress(InputError):
        if read_sidecar(path) == sidecar:  # speaks of another file
            _unlink(sidecar_path(path))
    raise InputError(
        f"another process wrote {path} at the same time, and its file system has no locks to keep two apart.\n"
        "Type the same command again when the other one has ended."
    )


def _sealed(value: dict[str, Any]) -> bytes:
    """Serialise a sidecar with a digest of itself as the last key, so that a flipped byte in it shows."""
    seal = hashlib.sha256(json.dumps(value, indent=2).encode()).hexdigest()
    return (json.dumps({**value, "seal": seal}, indent=2) + "\n").encode()


def _fits_its_seal(raw: bytes) -> bool:
    """Whether these are bytes that `_sealed` makes; to make them anew would take longest in `verify`."""
    body, _, seal = raw.rpartition(b',\n  "seal": "')
    digest = hashlib.sha256(body + b"\n}").hexdigest()
    return seal == f'{digest}"\n}}\n'.encode()


def parent_of(path: Path, *, role: str) -> Parent:
    """Describe a file as the parent of what is made from it."""
    return Parent(role=role, file=path.name, sha256=sha256_of(path))


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of an artifact. Raises InputError if it is missing or not a sidecar."""
    side = sidecar_of(path)
    return parse_sidecar(side, read_input(side, "sidecar"))


def parse_sidecar(side: Path, raw: bytes) -> Sidecar:
    """Parse the bytes of a sidecar file. Raises InputError that names what is wrong."""
    value = parse_json(raw, source=str(side))
    if not isinstance(value, dict) or "schema" not in value:
        raise InputError(f"{side} is not a sidecar of msn-deploy: it has no schema.")
    if value["schema"] != SCHEMA:
        raise InputError(
            f"{side} has schema {shown(value['schema'])}; this version reads {SCHEMA}.\nUpdate msn-deploy."
        )
    if value.pop("seal", None) is None or not _fits_its_seal(raw):
        raise InputError(f"{side} was changed after it was written: its seal does not fit.")
    sidecar = record(Sidecar, value, source=f"{side} is not a sidecar of msn-deploy")
    for name in (sidecar.file, *(Path(each.file).name for each in sidecar.parents if not each.is_data)):
        if not is_file_name(name):
            raise InputError(f"{side} describes {shown(name)}, which is not the name of a file beside it.")
    return sidecar
