"""Files that stages hand on: written atomically, each with a sidecar that names its parents by SHA-256.

The sidecar of `NAME.engine` is `NAME.plan.json`, that of any other file is `FILE.json`. A file is published in three
steps (old sidecar away, file renamed in, new sidecar renamed in), so a killed run leaves the old file, the new file,
or no file; never half of one, and never a sidecar that speaks of another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from msn_deploy import __version__
from msn_deploy.core.errors import InputError
from msn_deploy.core.opening import Kind, open_input, read_input

SCHEMA = 1
PARTIAL_SUFFIX = ".partial"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """What an artifact was made from: its role ("checkpoint", "onnx", "data:train", ...), file name and SHA-256.

    Data is no single file: its `file` is a known name or a folder, its digest is of images, labels and classes as they
    were loaded, and `read` says how they were loaded, so that the digest can be taken again.
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
    """What stands in the sidecar of one artifact.

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
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds, delete it if not."""
    if os.path.exists(path) and not os.path.isfile(path):  # a rename would replace /dev/null itself
        what = "a folder" if os.path.isdir(path) else "not a plain file"
        raise InputError(f"{path} is {what}; it cannot be written.\nGive the name of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX, dir=path.parent)
    except OSError as cause:
        raise InputError(f"{path} cannot be written: {cause.strerror}.\nChoose another place with `--out`.") from cause
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("ab") as stream:
            os.fsync(stream.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    except OSError as cause:  # a full disk, or a folder where the file should go
        if not isinstance(cause.errno, int):
            raise
        raise InputError(
            f"{path} cannot be written: {cause.strerror}.\nFree space, or choose another `--out`."
        ) from cause
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


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


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of an artifact lies."""
    if path.suffix == ".engine":
        return path.with_suffix(".plan.json")
    return path.with_name(path.name + ".json")


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
    """Write an artifact and its sidecar; `write` is its content, or gets a temporary path and fills it.

    versions: names of installed distributions whose version is recorded.
    """
    from msn_deploy.core.optional import version_of

    found = {name: version for name in versions if (version := version_of(name)) is not None}
    side = sidecar_path(path)
    with atomic_file(path) as partial:
        if isinstance(write, bytes):
            partial.write_bytes(write)
        else:
            write(partial)
        sidecar = Sidecar(
            kind=kind,
            file=path.name,
            sha256=hashlib.sha256(write).hexdigest() if isinstance(write, bytes) else sha256_of(partial),
            bytes=partial.stat().st_size,
            parents=tuple(parents),
            versions={"msn-deploy": __version__, **found},
            config=dict(config or {}),
            facts=dict(facts or {}),
        )
        side.unlink(missing_ok=True)
    with atomic_file(side) as partial:
        partial.write_bytes(_sealed(asdict(sidecar)))
    _LOG.info("%s: %s of %d bytes, SHA-256 %s", path, kind, sidecar.bytes, sidecar.sha256, extra={"written": path})
    return sidecar


def _sealed(value: dict[str, Any]) -> bytes:
    """Serialise a sidecar with a digest of itself as the last key, so that a flipped byte in it shows."""
    seal = hashlib.sha256(json.dumps(value, indent=2).encode()).hexdigest()
    return (json.dumps({**value, "seal": seal}, indent=2) + "\n").encode()


def parent_of(path: Path, *, role: str) -> Parent:
    """Describe a file as the parent of what is made from it."""
    return Parent(role=role, file=path.name, sha256=sha256_of(path))


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of an artifact. Raises InputError if it is missing or not a sidecar."""
    side = sidecar_path(path)
    return parse_sidecar(side, read_input(side, "sidecar"))


def parse_sidecar(side: Path, raw: bytes) -> Sidecar:
    """Parse the bytes of a sidecar file. Raises InputError that names what is wrong."""
    try:
        value = json.loads(raw)
        if value["schema"] != SCHEMA:
            raise InputError(f"{side} has schema {value['schema']!r}; this version reads {SCHEMA}.\nUpdate msn-deploy.")
        del value["seal"]
        if _sealed(value) != raw:
            raise InputError(f"{side} was changed after it was written: its seal does not fit.")
        if Path(value["file"]).name != value["file"] or value["file"] in ("", ".."):
            raise InputError(f"{side} speaks of {value['file']!r}, which is not the name of a file beside it.")
        parents = tuple(Parent(**parent) for parent in value.pop("parents"))
        texts = [value["kind"], value["sha256"], *(text for each in parents for text in (each.role, each.file))]
        texts += [each.sha256 for each in parents]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(p.read, dict) for p in parents):
            raise TypeError("a value of another kind than is written there")
        return Sidecar(parents=parents, **value)
    except (ValueError, KeyError, TypeError, RecursionError) as cause:  # the last: thousands of brackets
        raise InputError(f"{side} is not a sidecar of msn-deploy ({type(cause).__name__}: {cause}).") from cause
