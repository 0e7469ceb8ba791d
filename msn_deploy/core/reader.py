"""The one reader of what files say of themselves: JSON and TOML to plain values, these to records, and names of files.

Nothing is taken on trust. A text has a largest size and a deepest nesting, its numbers fit 64 bits, and what it says
can be written again; each field of a record has the type that the record declares. Whatever is wrong is an InputError
that names the source.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from msn_deploy.core.errors import InputError, did_you_mean, shorten, shown, size_text, tamed

if sys.version_info >= (3, 11):
    import tomllib as tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError  # late: `--help` of a command would wait for it
    from pydantic_core import ErrorDetails

T = TypeVar("T")

MOST_BYTES = 16 << 20
"""Of JSON text, unless its reader says otherwise."""
MOST_TOML_BYTES = 128 << 10  # tomllib takes seconds for more, where keys are made to be slow
_LONGEST, _LONGEST_NEW = 255, 120  # bytes; a new name gets endings, such as .state.safetensors.json, and is to be typed
_DEEPEST = 40  # lists and objects inside each other
_BYTES_PER_CONTAINER = 16  # of the largest size: an empty list takes 3 bytes of text and 20 times as much memory
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section",
    "mapping_type": "a section",
    "dataclass_type": "a section",
}


def decoded(raw: bytes, *, source: str, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a file. Raises InputError for too much of it, and for what is not UTF-8."""
    if len(raw) > most_bytes:
        raise InputError(f"{source} holds more than {size_text(most_bytes)} of text, which is the most that is read.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise InputError(f"{source} is not text in UTF-8: {cause.reason} at byte {cause.start}.") from cause


def parse_json(raw: bytes | str, *, source: str, most_bytes: int = MOST_BYTES, finite: bool = False) -> Any:
    """Return the value that JSON text holds. Raises InputError that names the source.

    finite: refuse NaN and Infinity, which Python writes and reads, but JSON does not know.
    """
    text = decoded(raw, source=source, most_bytes=most_bytes) if isinstance(raw, bytes) else raw
    try:
        containers = text.count("[") + text.count("{")
        if containers * _BYTES_PER_CONTAINER > most_bytes:
            raise ValueError(f"{containers} brackets and braces are too many")
        return _plain(json.loads(text), finite=finite)
    except (ValueError, RecursionError) as cause:  # the second: thousands of brackets
        raise InputError(f"{source} is not JSON that can be read: {_said(cause)}.") from cause


def parse_toml(raw: bytes | str, *, source: str) -> dict[str, Any]:
    """Return the keys and values of TOML text. Raises InputError that names the source."""
    text = decoded(raw, source=source, most_bytes=MOST_TOML_BYTES) if isinstance(raw, bytes) else raw
    try:
        value: dict[str, Any] = _plain(tomllib.loads(text))
    except (ValueError, RecursionError) as cause:
        raise InputError(f"{source} is not valid TOML: {_said(cause)}.") from cause
    return value


def _said(cause: Exception) -> str:
    """Return what a parser says is wrong, without the text that it was given."""
    return "it is nested too deeply" if isinstance(cause, RecursionError) else shorten(cause, 120)


def _plain(value: Any, *, finite: bool = False) -> Any:
    """Return a value that was parsed, if it is neither too deep nor holds what cannot be computed with or written."""
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        deeper = []
        for each in level:
            for key in each if isinstance(each, dict) else ():
                key.encode()  # a lone surrogate is ValueError
            for item in each.values() if isinstance(each, dict) else each:
                kind = type(item)
                if kind is int and not -(2**63) <= item < 2**63:
                    raise ValueError(f"the whole number {shown(item, 30)} is too large")
                if kind is float and finite and not math.isfinite(item):
                    raise ValueError(f"{item} is not a number")
                if kind is str:
                    item.encode()
                elif kind is dict or kind is list:
                    deeper.append(item)
        if not deeper:
            return value
        level = deeper
    raise RecursionError


def record(cls: type[T], value: Any, *, source: str, **made: Any) -> T:
    """Build a record from the plain values of its fields, and those of the records in it from theirs.

    cls: a dataclass. What it declares is checked and nothing is converted, but lists become tuples. A key that it does
    not have, a missing one, a value of another type, and what the record itself refuses are InputErrors that name the
    source and the key. made: fields that are not in the value, and are not checked.
    """
    from pydantic import ValidationError

    try:
        kind: Any = cls
        (checked,) = _checker(kind, frozenset(made)).validate_json(json.dumps([value]))
        return cls(**{each.name: getattr(checked, each.name) for each in fields(checked)}, **made) if made else checked
    except (ValidationError, InputError) as cause:
        raise refusal(cls, cause, source=source, at=1) from cause


@cache
def _checker(cls: Any, left_out: frozenset[str]) -> TypeAdapter[tuple[Any]]:
    """Return what checks a record, or one with fewer fields."""
    from pydantic import TypeAdapter

    if left_out:
        kept = [
            (each.name, each.type, field(default=each.default, default_factory=each.default_factory))
            for each in fields(cls)
            if each.name not in left_out
        ]
        module, cls = cls.__module__, make_dataclass(cls.__name__, kept, kw_only=True)
        cls.__module__ = module  # where its types are looked up
    # Only from JSON does pydantic's strict mode take a list for a tuple and an object for a record; and only what is
    # around a dataclass gives it its configuration.
    return TypeAdapter(tuple[cls], config={"extra": "forbid", "strict": True})


def refusal(cls: type, cause: ValidationError | InputError, *, source: str, at: int = 0) -> InputError:
    """Return the error that says what is wrong with a record.

    Of several keys it is the first that is unknown, mistyped, out of its limits or missing, in that order. at: how many
    steps lead to the record itself.
    """
    if isinstance(cause, InputError):
        return InputError(f"{source}: {cause}")
    # A key that is missing may be one that was misspelt, so the others come first.
    error = min(cause.errors(), key=lambda each: each["type"] == "missing")
    return InputError(f"{source}{_told(cls, error, error['loc'][at:])}")


def _told(cls: Any, error: ErrorDetails, place: tuple[int | str, ...]) -> str:
    """Return " [SECTION]: " and what is wrong with one key of it."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if not place:
        return f" must be {_KINDS.get(kind) or error['msg']}, got {shown(value)}."
    *path, key = place
    if isinstance(key, int):
        key = f"{path.pop()}[{key}]" if path else f"[{key}]"
    section = f" [{'.'.join(str(step + 1 if isinstance(step, int) else step) for step in path)}]" if path else ""
    limits = " ".join(f"{_LIMITS[name]} {limit:g}" for name, limit in context.items() if name in _LIMITS)
    option = " (--lr)" * (key == "learning_rate")
    told = f"{key}{option} must be {_KINDS.get(kind) or limits or error['msg']}, got {shown(value)}."
    if kind == "missing":
        told = f"missing key {key!r}."
    elif kind == "unexpected_keyword_argument":
        for step in (each for each in path if isinstance(each, str)):
            inner = _keys(cls)[step]
            cls = next(each for each in (inner, *get_args(inner)) if is_dataclass(each))
        told = f"unknown key {shown(key)}{did_you_mean(key, list(_keys(cls)))}"
    elif kind == "literal_error":
        known = re.findall("'(.*?)'", context["expected"])
        told = f"unknown {key} {shown(value)}{did_you_mean(str(value)[:100], known)}"
    elif kind == "value_error":
        told = f"{key} {context['error']}"
    elif kind == "tuple_type" and isinstance(value, dict):
        told = f"{key} must be written as tables, [[{key}]]."
    return f"{section}: {told}"


def _keys(cls: Any) -> dict[str, Any]:
    """Return the types of a record's keys, by their names in a file."""
    known: Mapping[str, Any] | None = getattr(cls, "__pydantic_fields__", None)
    if known is not None:
        return {str(each.validation_alias or name): each.annotation for name, each in known.items()}
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


def is_file_name(text: str) -> bool:
    """Whether a text names a file in a folder: neither the folder, nor one above it, nor anything elsewhere."""
    return text not in ("", ".", "..") and not {"/", "\0"} & set(text) and len(os.fsencode(text)) <= _LONGEST


def new_file_name(text: str) -> str:
    """Return a text that files are to be named after. Raises ValueError for one that is not plain, with what it may be.

    More is refused than `is_file_name` has to: what a shell takes for an option, hides or cannot show.
    """
    plain = is_file_name(text) and not {"\\", "\n"} & set(text) and text == text.strip() and text == tamed(text)
    if not plain or text[0] in ".-" or len(os.fsencode(text)) > _LONGEST_NEW:
        raise ValueError(
            f"becomes that of a file: at most {_LONGEST_NEW} bytes, neither / nor \\ nor a control character, "
            f"no dot, hyphen or blank in front; got {shown(text)}."
        )
    return text
