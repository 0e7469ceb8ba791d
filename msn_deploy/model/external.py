"""Weights in other files, merged into the model: read from the model's own folder, and from nowhere else.

A model may name any file as its weights, so each name is held against the folder, and each size against the file,
before anything is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from msn_deploy.core.artifacts import open_input
from msn_deploy.core.errors import InputError
from msn_deploy.model.onnx_file import external_tensors, location_of, look_through, parse_onnx
from msn_deploy.model.tensors import MOST_BYTES, bytes_of, flaw_of, size_text


@dataclass(frozen=True, slots=True)
class Merged:
    """A model that is one file now, and the other files that its weights came from (none: it was one before)."""

    model: ModelProto
    files: tuple[Path, ...]


def read_merged(path: Path) -> Merged:
    """Read an ONNX file, take in the weights that it keeps in files beside it, and look it all through.

    Raises InputError for what read_onnx refuses, for weights outside the model's folder, for files that are shorter
    than the model says, and for 2 GiB and more in all.
    """
    data, model = parse_onnx(path, step="export")
    outside = external_tensors(model)
    files = tuple(sorted({path.parent / location_of(tensor) for tensor in outside}))
    if outside:
        _merge(path, outside, inside=len(data))
        data = model.SerializeToString()
    look_through(path, data, model)
    return Merged(model, files)


def _merge(path: Path, tensors: list[TensorProto], *, inside: int) -> None:
    parts = [_Part.of(path, tensor) for tensor in tensors]
    total = inside + sum(part.length for part in parts)
    if total >= MOST_BYTES:
        raise InputError(
            f"{path} has {size_text(total)} with its weights from other files; one ONNX file holds less than "
            f"{size_text(MOST_BYTES)}.\nExport a smaller network, or in half precision."
        )
    for tensor, part in zip(tensors, parts, strict=True):
        with open_input(part.file) as stream:
            stream.seek(part.offset)
            values = stream.read(part.length)
        if len(values) < part.length:
            raise InputError(f"{part.file} became shorter while it was read.\nTry again when it is whole.")
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = values


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the values of one tensor lie."""

    file: Path
    offset: int
    length: int

    @staticmethod
    def of(path: Path, tensor: TensorProto) -> _Part:
        """Find the part, check that it lies in the folder of `path`, and that it is there in full."""
        file = _in_own_folder(path, tensor)
        offset, stated = (_number(path, tensor, key) for key in ("offset", "length"))
        flaw = flaw_of(onnx, tensor, external=True)
        if flaw is None and tensor.data_type == TensorProto.STRING:
            flaw = "is of strings, which cannot lie in another file"
        if flaw is not None:
            raise InputError(f"{path}: the tensor {tensor.name!r} {flaw}.\n{_AGAIN}")
        length = bytes_of(onnx, tensor.data_type, tensor.dims)
        if stated not in (None, length):
            raise InputError(
                f"{path}: the tensor {tensor.name!r} takes {length} bytes, and {stated} are said to lie in "
                f"{file.name}.\n{_AGAIN}"
            )
        size = file.stat().st_size
        if (offset or 0) + length > size:
            raise InputError(
                f"{path}: the tensor {tensor.name!r} ends at byte {(offset or 0) + length} of {file.name}, which has "
                f"{size} bytes.\n{_AGAIN}"
            )
        return _Part(file, offset or 0, length)


_AGAIN = "The files do not belong together, or one was cut off. Copy all of them again."


def _in_own_folder(path: Path, tensor: TensorProto) -> Path:
    """Return the file with all links resolved; InputError unless it is a plain one in the folder of `path`."""
    location = location_of(tensor)
    named = f"{path} keeps the tensor {tensor.name!r} in {location!r}"
    if os.path.isabs(location) or ".." in Path(location).parts or "\0" in location or "\\" in location:
        raise InputError(
            f"{named}, which is no place in its own folder.\n"
            "Do not trust the file, if it is not yours; if it is, save it again with all files in one folder."
        )
    try:
        folder = path.parent.resolve()
        file = (folder / location).resolve()
        inside, exists, plain = file.is_relative_to(folder), file.exists(), file.is_file()
    except (OSError, RuntimeError) as cause:  # a name too long, a circle of links
        raise InputError(f"{named}, which cannot be read ({type(cause).__name__}).\n{_AGAIN}") from cause
    if not inside:
        raise InputError(
            f"{named}, a link that leaves its own folder.\n"
            "If you trust it, copy the model and its files, not the links, into one folder (cp -L)."
        )
    if not plain:
        what = "is not a plain file" if exists else "does not exist"
        raise InputError(f"{named}, which {what} in {path.parent}.\nCopy all files of the model into one folder.")
    return file


def _number(path: Path, tensor: TensorProto, key: str) -> int | None:
    """Return the offset or length that a tensor states, None if it states none."""
    text = next((entry.value for entry in tensor.external_data if entry.key == key), None)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InputError(f"{path}: the tensor {tensor.name!r} has {text[:30]!r} as its {key} in a file.\n{_AGAIN}")
    return int(text)
