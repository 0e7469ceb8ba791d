"""From a file to a parsed ONNX model, with the weights that it keeps in other files.

Both ONNX Runtime and TensorRT read weights that a model keeps in other files, TensorRT without any limit on where
they lie; and TensorRT-RTX 1.7.1 takes an empty or a text file for a network of no layers. So a file is looked at here
first, and only its bytes go further. A model may name any file as its weights: weights are merged from the model's own
folder and from nowhere else, and each size is compared with the file before anything is read.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from msn_deploy.core.errors import InputError, size_text
from msn_deploy.core.opening import open_input, read_input
from msn_deploy.model.graphs import MOST_BYTES, all_tensors, bytes_of, flaw_of

_OWN = "; export a network of your own with `msn-deploy export FILE.py:FACTORY --weights FILE`"
_KINDS = {
    b"PK\x03\x04": f"a zip archive, as torch's .pt files are{_OWN}",
    **{bytes([0x80, protocol]): f"a pickle, which is never opened here{_OWN}" for protocol in (2, 3, 4, 5)},
    b"version https://git-lfs": "a pointer of git-lfs; fetch the file itself with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive; unpack it with gunzip",
    b"\x89HDF": "an HDF5 file; convert it to ONNX with the tool that made it",
}
_AGAIN = "The files do not belong together, or one was cut off. Copy all of them again."


def parse(path: Path) -> tuple[bytes, ModelProto]:
    """Return the bytes of a file and the model that they parse to, not looked through yet.

    Raises InputError for a file that is missing, too large, empty, cut off, or holds no network.
    """
    data = read_input(path, "model")
    if not data:
        raise InputError(f"{path} is empty (0 bytes): not an ONNX model.\nExport or copy it again.")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as cause:  # protobuf's DecodeError; its class differs between protobuf implementations
        raise InputError(
            f"{path} is not an ONNX model, or was cut off: its {len(data)} bytes do not parse.\n"
            f"{_looks_like(data, path)}"
        ) from cause
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} holds no network: {len(model.graph.node)} nodes.\n{_looks_like(data, path)}")
    return data, model


def refuse_external(path: Path, model: ModelProto) -> None:
    """Raise InputError for a model that keeps weights in other files."""
    outside = _external_tensors(model)
    if outside:
        raise InputError(
            f"{path} keeps weights in another file ({_location_of(outside[0])}); models that are one file are read.\n"
            f"Merge them: msn-deploy export {shlex.quote(str(path))} --out merged.onnx"
        )


def merge_weights(path: Path, model: ModelProto, *, inside: int) -> tuple[Path, ...]:
    """Take in, in place, the weights that a model keeps in files beside it; return those files.

    inside: bytes of the model file itself. Raises InputError for weights outside the model's folder, for files that
    are shorter than the model says, and for 2 GiB and more in all.
    """
    tensors = _external_tensors(model)
    files = tuple(sorted({path.parent / _location_of(tensor) for tensor in tensors}))
    parts = [_Part.of(path, tensor) for tensor in tensors]
    total = inside + sum(part.length for part in parts)
    if total >= MOST_BYTES:
        raise InputError(
            f"{path} has {size_text(total)} with its weights from other files; one ONNX file holds less than "
            f"{size_text(MOST_BYTES)}.\nExport a smaller network, or in half precision."
        )
    for tensor, part in zip(tensors, parts, strict=True):
        with open_input(part.file, "any") as stream:
            stream.seek(part.offset)
            values = stream.read(part.length)
        if len(values) < part.length:
            raise InputError(f"{part.file} became shorter while it was read.\nTry again when it is complete.")
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = values
    return files


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the values of one tensor lie."""

    file: Path
    offset: int
    length: int

    @staticmethod
    def of(path: Path, tensor: TensorProto) -> _Part:
        """Find the part, check that it is in the folder of `path`, and that it is there in full."""
        file = _in_own_folder(path, tensor)
        offset, stated = (_number(path, tensor, key) for key in ("offset", "length"))
        flaw = flaw_of(tensor, external=True)
        if flaw is None and tensor.data_type == TensorProto.STRING:
            flaw = "is of strings, which cannot be in another file"
        if flaw is not None:
            raise InputError(f"{path}: the tensor {tensor.name!r} {flaw}.\n{_AGAIN}")
        length = bytes_of(tensor.data_type, tensor.dims)
        if stated not in (None, length):
            raise InputError(
                f"{path}: the tensor {tensor.name!r} takes {length} bytes, and {stated} are said to be in "
                f"{file.name}.\n{_AGAIN}"
            )
        size = file.stat().st_size
        if (offset or 0) + length > size:
            raise InputError(
                f"{path}: the tensor {tensor.name!r} ends at byte {(offset or 0) + length} of {file.name}, which has "
                f"{size} bytes.\n{_AGAIN}"
            )
        return _Part(file, offset or 0, length)


def _in_own_folder(path: Path, tensor: TensorProto) -> Path:
    """Return the file with all links resolved; InputError unless it is a plain one in the folder of `path`."""
    location = _location_of(tensor)
    named = f"{path} keeps the tensor {tensor.name!r} in {location!r}"
    if os.path.isabs(location) or ".." in Path(location).parts or "\0" in location or "\\" in location:
        raise InputError(
            f"{named}, which is not in its own folder.\n"
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


def _external_tensors(model: ModelProto) -> list[TensorProto]:
    """Return the tensors whose values are in other files, in the order of those files' names."""
    return sorted((each for each in all_tensors(model) if each.data_location == each.EXTERNAL), key=_location_of)


def _location_of(tensor: TensorProto) -> str:
    """Return the file that an external tensor names."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "unnamed")


def _looks_like(data: bytes, path: Path) -> str:
    """Say what a file is instead, by its first bytes, and what to do about it."""
    if data[8:10] == b'{"':  # after eight bytes that count those of the header: safetensors
        return f"It begins like a checkpoint. Export it first: msn-deploy export {shlex.quote(str(path))}"
    for start, what in _KINDS.items():
        if data.startswith(start):
            return f"It begins like {what}."
    head = data[:512]
    if len(head) > 3 and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "It looks like text. Check that it is the file that you meant, and download it again if it came so."
    return "Export it again, or copy it again and compare the sizes."
