"""A file of any format, changed in a few places: in its bytes, or in what these bytes mean.

Archives and packed files are unpacked, changed and packed again, so that changes get past checksums; sidecars are
sealed again half of the time, so that what they say is looked at.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.values import NUMBERS, TEXTS, TOML, changed_tree

_BOMB = 200 << 20  # bytes, of 200 kB when packed
_SPARSE = 12 << 30


def mutated(name: str, raw: bytes, rng: Random) -> bytes:
    """Return the bytes of a file changed; what its name says of its format decides where."""
    if rng.random() < 0.25:
        return changed_bytes(raw, rng)
    for pattern, change in _FORMATS:
        if re.search(pattern, name):
            try:
                return change(raw, rng)
            except (ValueError, KeyError, IndexError, struct.error, zlib.error, OSError, zipfile.BadZipFile):
                break  # changed before, so that it can no longer be read as what it was
    return changed_bytes(raw, rng)


def sparse_size(rng: Random) -> int | None:
    """Return, once in a hundred inputs, the size that a file gets without content."""
    return _SPARSE if rng.random() < 0.01 else None


def changed_bytes(raw: bytes, rng: Random) -> bytes:
    """Return bytes changed in one to four places, cut off, or replaced."""
    if rng.random() < 0.05:
        return rng.choice(
            (b"", b"\x00", b"\xff" * 4096, bytes(range(256)) * 16, b"{", b"[" * 100_000, b"PK\x03\x04" + bytes(60))
        )
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.randrange(len(made) + 1), rng.choice((1, 2, 4, 8, 64, 1024))
        if rng.random() < 0.4:
            at = min(at, rng.choice((8, 64, 512)))  # where formats say what they are
        end = min(at + length, len(made))
        match rng.randrange(9):
            case 0:
                if made:
                    made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1:
                made[at:end] = rng.randbytes(end - at)
            case 2:
                made[at:at] = rng.randbytes(length)
            case 3:
                del made[at:end]
            case 4:
                del made[at:]
            case 5:
                made[at:at] = made[at:end] * rng.choice((1, 2, 50))
            case 6:
                made[at:end] = rng.choice((b"\x00", b"\xff", b"\x80", b"9")) * (end - at)
            case 7:
                number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 1 << 24))
                made[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
            case 8:
                made[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return bytes(made)


def _json(raw: bytes, rng: Random) -> bytes:
    return changed_tree(json.loads(raw), rng).encode("utf-8", "surrogatepass")


def _lines_of_json(raw: bytes, rng: Random) -> bytes:
    lines = raw.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = rng.choice((_json, _text, changed_bytes))(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _sidecar(raw: bytes, rng: Random) -> bytes:
    """Change a sidecar, and seal it again half of the time where it still can be."""
    value = json.loads(raw)
    seal = value.pop("seal", None)
    text = changed_tree(value, rng)
    if seal is None or rng.random() < 0.4:
        return text.encode("utf-8", "surrogatepass")
    try:
        told = json.loads(text)
        whole = json.dumps(told, indent=2)
        return (json.dumps({**told, "seal": hashlib.sha256(whole.encode()).hexdigest()}, indent=2) + "\n").encode()
    except (ValueError, RecursionError, TypeError):
        return text.encode("utf-8", "surrogatepass")


def _toml(raw: bytes, rng: Random) -> bytes:
    lines = raw.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                if equals:
                    lines[at] = f"{key}= {rng.choice(TOML)}"
            case 4:
                del lines[at]
                lines = lines or [""]
            case 5:
                lines.insert(at, lines[at])
            case 6:
                lines.insert(
                    at,
                    rng.choice(
                        ("[a.b.c]", "[[train]]", "[train", "a.b = 1", "\x00", "x" * 70_000, "a." * 5000 + "b = 1")
                    ),
                )
            case 7:
                lines[at] = json.dumps(rng.choice(TEXTS)) + (equals and f"= {rng.choice(TOML)}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_TOKENS = (*NUMBERS, *TEXTS, "nan", "inf", "9" * 400, "z" * 100_000, '"', ",", ";", "\t",
"!!python/object/apply:os.system ['touch victim/ran']",
           "&a [*a]", "{" * 5000, "- " * 5000, "/etc/passwd", "../../secret.png", "\udc80\udcff")  # fmt: skip
_LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


def _text(raw: bytes, rng: Random) -> bytes:
    """Change tokens of a table, of a list of names, of labels or of YAML."""
    parts = re.split(r"([\s,;:]+)", raw.decode("utf-8", "surrogateescape"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(parts))
        match rng.randrange(5):
            case 0 | 1 | 2:
                parts[at] = rng.choice(_TOKENS)
            case 3:
                del parts[at]
                parts = parts or [""]
            case 4:
                parts[at:at] = parts[max(0, at - 6) : at] * rng.choice((1, 3, 200))
    if rng.random() < 0.03:
        parts.insert(0, _LAUGHS)
    return "".join(parts).encode("utf-8", "surrogateescape" if rng.random() < 0.9 else "replace")


def _safetensors(raw: bytes, rng: Random) -> bytes:
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    choice, metadata = rng.randrange(6), header.get("__metadata__", {})
    if choice < 3 and metadata:  # what the project itself says in it
        key = rng.choice(list(metadata))
        metadata[key] = changed_tree(json.loads(metadata[key]), rng)
    elif choice == 3:
        name = rng.choice([each for each in header if each != "__metadata__"])
        kinds = ("F4", "F8_E8M0", "F6_E2M3", "F8_E4M3", "BOOL", "I64", "U16", "BF16", "F64", "C64", "x")
        header[name] |= rng.choice(
            (
                {"dtype": rng.choice(kinds)},
                {"shape": rng.choice(([], [0], [-1], [1 << 40, 1 << 40], [1, 2, 3]))},
                {"data_offsets": [0, 4]},
            )
        )
    elif choice == 4:
        body = (
            changed_bytes(body, rng)
            if rng.random() < 0.3
            else struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38))) * (len(body) // 4)
        )
    text = (changed_tree(header, rng) if choice == 5 else json.dumps(header)).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.95 else rng.choice((0, len(text) - 1, 1 << 31, (1 << 63) - 1))
    return length.to_bytes(8, "little") + text + body


def _onnx(raw: bytes, rng: Random) -> bytes:
    import onnx

    model = onnx.load_model_from_string(raw)
    props = [each for each in model.metadata_props if each.key == "msn_deploy"]
    if props and rng.random() < 0.4:
        props[0].value = changed_tree(json.loads(props[0].value), rng).encode("utf-8", "replace").decode()
        return bytes(model.SerializeToString())
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_message(model, rng)
    return bytes(model.SerializeToString())


def _change_message(message: Any, rng: Random) -> None:
    """Walk down a protobuf message at random, and change what is met."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    repeated = hasattr(value, "append") or hasattr(value, "add")
    if field.message_type is not None:
        target = rng.choice(value) if repeated else value
        match rng.randrange(10):
            case 0:
                if repeated:
                    del value[rng.randrange(len(value))]
                else:
                    message.ClearField(field.name)
            case 1:
                if repeated:
                    value.add().CopyFrom(target)
            case _:
                _change_message(target, rng)
        return
    whole = {
        "str": lambda: rng.choice(TEXTS),
        "bytes": lambda: rng.choice((b"", b"\xff\xfe", rng.choice(TEXTS).encode("utf-8", "replace"), bytes(1000))),
        "int": lambda: rng.choice((0, 1, -1, 2, 7, 99, 1 << 16, (1 << 31) - 1, (1 << 62), -(1 << 63))),
        "float": lambda: rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38)),
    }
    values = list(value) if repeated else [value]
    at = rng.randrange(len(values))
    made = whole[type(values[at]).__name__]()
    if isinstance(made, int) and (field.cpp_type == field.CPPTYPE_INT32 or field.enum_type is not None):
        made = max(-(1 << 31), min(made, (1 << 31) - 1))
    try:
        if repeated:
            values[at : at + 1] = rng.choice(([made], [], [made, made]))
            message.ClearField(field.name)
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, made)
    except (ValueError, TypeError):  # a closed enumeration
        message.ClearField(field.name)


def _zip(raw: bytes, rng: Random) -> bytes:
    """Change a member, a name or what the directory says of a member of a .npz or .t7."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    name = rng.choice(list(members))
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    match rng.randrange(8):
        case 0 | 1 | 2 | 3:
            members[name] = (_npy if name.endswith(".npy") and rng.random() < 0.6 else changed_bytes)(
                members[name], rng
            )
        case 4:
            members[rng.choice(("../victim.npy", "/elsewhere.npy", "", "x" * 300, "\x1b[31m.npy", name.upper()))] = (
                members.pop(name)
            )
        case 5:
            del members[name]
        case 6:
            members[name], packing = (
                members[name] + bytes(_BOMB if rng.random() < 0.2 else 1 << 20),
                zipfile.ZIP_DEFLATED,
            )
        case 7:
            members["more.npy"] = members[name]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return changed_bytes(made.getvalue(), rng) if rng.random() < 0.2 else made.getvalue()


def _npy(raw: bytes, rng: Random) -> bytes:
    """Change the text that says type and shape of an array."""
    size = int.from_bytes(raw[8:10], "little")
    text, body = raw[10 : 10 + size].decode("latin-1"), raw[10 + size :]
    shapes = (
        "()",
        "(0,)",
        "(-1,)",
        "(1 << 60,)",
        "(4294967296, 4294967296)",
        "(1, 1, 1, 1, 1)",
        "None",
        "(1e3,)",
        "(" * 200,
        "(9999999, 999)",
    )
    kinds = (
        "'|O'",
        "'<f8'",
        "'>i4'",
        "'|b1'",
        "'<c16'",
        "'|S9'",
        "'<U9'",
        "[('a', '<f4')]",
        "'<M8[s]'",
        "'|V999999999'",
        "'nonsense'",
        "'<f2'",
    )
    text = rng.choice(
        (
            lambda: re.sub(r"\([\d, ]*\)", rng.choice(shapes).replace("\\", ""), text),
            lambda: re.sub(r"'descr': [^,]+", f"'descr': {rng.choice(kinds)}", text),
            lambda: text.replace(
                "False", rng.choice(("True", "1", "None", "__import__('os').system('touch victim/ran')"))
            ),
            lambda: changed_bytes(text.encode("latin-1"), rng).decode("latin-1"),
        )
    )()
    header = text.encode("latin-1", "replace")
    return raw[:8] + (len(header) & 0xFFFF).to_bytes(2, "little") + header + body


def _gz(raw: bytes, rng: Random) -> bytes:
    content = gzip.decompress(raw)
    if rng.random() < 0.05:
        return gzip.compress(content + bytes(_BOMB), 1)
    return gzip.compress(changed_bytes(content, rng), 1)


def _mat(raw: bytes, rng: Random) -> bytes:
    """Change the content of one packed variable of a MATLAB file."""
    at, parts = 128, []
    while at < len(raw):
        kind, size = struct.unpack_from("<II", raw, at)
        parts.append((kind, raw[at + 8 : at + 8 + size]))
        at += 8 + size
    chosen = rng.randrange(len(parts))
    kind, content = parts[chosen]
    inside = zlib.decompress(content) if kind == 15 else content
    inside = inside + bytes(_BOMB) if rng.random() < 0.05 else changed_bytes(inside, rng)
    parts[chosen] = kind, zlib.compress(inside, 1) if kind == 15 else inside
    return raw[:128] + b"".join(struct.pack("<II", kind, len(content)) + content for kind, content in parts)


def _png(raw: bytes, rng: Random) -> bytes:
    """Change a chunk of a PNG file under a checksum that fits."""
    at, chunks = 8, []
    while at < len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += 12 + size
    where = rng.randrange(len(chunks))
    kind, content = chunks[where]
    if kind == b"IHDR" and rng.random() < 0.6:
        sizes = rng.choice(((0, 0), (1, 1), (30_000, 30_000), (1 << 31, 1), (13_000, 13_000), (65_535, 9)))
        content = struct.pack(">II", *(size & 0xFFFFFFFF for size in sizes)) + content[8:]
    elif kind == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(changed_bytes(zlib.decompress(content), rng))
    else:
        content = changed_bytes(content, rng)
    chunks[where] = kind, content
    if rng.random() < 0.2:
        packed = zlib.compress(bytes(10 << 20))
        more = {b"zTXt": b"a\x00\x00" + packed, b"eXIf": rng.randbytes(40), b"acTL": rng.randbytes(8),
                b"iCCP": b"a\x00\x00" + packed, b"tEXt": b"Comment\x00\x1b[31m"}  # fmt: skip
        extra = rng.choice(list(more.items()))
        chunks.insert(1, extra)
    return raw[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _replaced(raw: bytes, rng: Random) -> bytes:
    """Return what a file may be under a wrong name: a script for Ghostscript, a pickle, a page, an archive."""
    return rng.choice(
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n"
            b"(victim/ran) (w) file closefile\nshowpage\n",
            b"cposix\nsystem\n(S'touch victim/ran'\ntR.",
            b"\x80\x04\x95\x20" + bytes(7) + b"\x8c\x05posix\x8c\x06system\x93\x8c\x10touch victim/ran\x85R.",
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
            b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1" + rng.randbytes(200),
            b"\x00\x00\x00\x0cjP  \r\n\x87\n" + rng.randbytes(100),
            b"II*\x00\x08\x00\x00\x00" + rng.randbytes(200),
            b"RIFF\xff\xff\xff\x7fWEBPVP8 " + rng.randbytes(100),
            b"P5 99999 99999 255\n",
            b"P6\n2147483647 2147483647\n255\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        )
    )


def _image(raw: bytes, rng: Random) -> bytes:
    if rng.random() < 0.15:
        return _replaced(raw, rng)
    return _png(raw, rng) if raw.startswith(b"\x89PNG") and rng.random() < 0.7 else changed_bytes(raw, rng)


_FORMATS: tuple[tuple[str, Callable[[bytes, Random], bytes]], ...] = (
    (r"\.safetensors$", _safetensors),
    (r"\.onnx$", _onnx),
    (r"(\.onnx|\.safetensors|\.plan|\.jsonl|\.bench|bench\.json|\.html|\.png|\.cache)\.json$|\.plan\.json$", _sidecar),
    (r"\.jsonl$", _lines_of_json),
    (r"\.json$", _json),
    (r"\.toml$", _toml),
    (r"\.(csv|tsv|txt|yaml|names|cache)$", _text),
    (r"\.(npz|t7|pt)$", _zip),
    (r"\.npy$", _npy),
    (r"\.gz$", _gz),
    (r"\.mat$", _mat),
    (r"\.(png|jpg|bmp|gif|webp|tif|pgm)$", _image),
)  # fmt: skip
