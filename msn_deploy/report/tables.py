"""How values and tables are written in the report; every text is escaped here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

DASH = "\N{EN DASH}"
COLOURS = 6  # of arms, before they repeat
_SPELLED = {
    "cpu": "CPU",
    "cuda": "CUDA",
    "d2h": "copy from device",
    "fp16": "FP16",
    "gpu": "GPU",
    "h2d": "copy to device",
    "int8": "INT8",
    "l4t": "L4T",
    "onnx": "ONNX",
    "sha256": "SHA-256",
    "utc": "UTC",
}
_UNITS = {"bytes": "", "ms": "ms", "mib": "MiB", "mhz": "MHz", "mj": "mJ"}


def decimals_for(values: Iterable[float], *, digits: int = 3) -> int:
    """Return how many decimals give the smallest positive value so many significant digits."""
    smallest = min((value for value in values if value > 0), default=1.0)
    return min(6, max(0, digits - 1 - math.floor(math.log10(smallest))))


def heading_of(key: str) -> str:
    """Turn a key into a column heading: "engine_weight_bytes" into "Engine weight", "median_ms" into "Median (ms)"."""
    if key == "bytes":
        return "Size"
    stem, _, last = key.rpartition("_")
    unit = _UNITS.get(last)
    words = (stem if unit is not None and stem else key).split("_")
    spelled = " ".join(_SPELLED.get(word, word) for word in words)
    return f"{spelled[:1].upper()}{spelled[1:]}" + (f" ({unit})" if unit and stem else "")


def value_text(key: str, value: Any) -> str:
    """Write a value the way its key asks for: bytes in KiB or MiB, an accuracy in percent. Not yet escaped."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text('', item)}" for name, item in value.items()) or DASH
    if isinstance(value, (list, tuple)):
        return ", ".join(value_text("", item) for item in value) or DASH
    if isinstance(value, (int, float)):
        return _number_text(key, value)
    return str(value)


def _number_text(key: str, value: float) -> str:
    if key.endswith("bytes"):
        return bytes_text(value)
    if key.endswith("accuracy") and 0 <= value <= 1:
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def bytes_text(value: float) -> str:
    """Write a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def table(
    caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[bool], css: str = ""
) -> str:
    """Return a table; cells are HTML already, the first of each row is its heading, numeric columns align right.

    It sits in a region of its own that scrolls where a phone is too narrow, so the page itself never does.
    """
    marks = [' class="n"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{mark}>{escape(name)}</th>' for name, mark in zip(headings, marks, strict=True))
    body = "".join(
        f'<tr><th scope="row"{marks[0]}>{row[0]}</th>'
        + "".join(f"<td{mark}>{cell}</td>" for cell, mark in zip(row[1:], marks[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{css}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts_table(caption: str, facts: Mapping[str, Any]) -> str:
    """Return a two-column table of names and values."""
    rows = [(escape(heading_of(key)), _fact(key, value)) for key, value in facts.items()]
    return table(caption, ("What", "Value"), rows, numeric=(False, False), css="facts")


def _fact(key: str, value: Any) -> str:
    shown = escape(value_text(key, value))
    return f"<code>{shown}</code>" if key.endswith(("sha256", "file", "path")) and shown != DASH else shown


def records_table(caption: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a row per record; the columns are the keys in order of appearance.

    Byte columns carry a bar, so that halvings are seen and not only read. A rule separates the values of the first
    column.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    numeric = [any(_is_number(record.get(key)) for record in records) for key in keys]
    largest = {
        key: max((record[key] for record in records if _is_number(record.get(key))), default=0)
        for key in keys
        if key.endswith("bytes")
    }
    rows = []
    for record in records:
        cells = [escape(value_text(key, record.get(key))) for key in keys]
        for at, key in enumerate(keys):
            if largest.get(key) and _is_number(record.get(key)):
                share = 100 * record[key] / largest[key]
                cells[at] += f'<span class="bar"><i style="width:{share:.1f}%"></i></span>'
        rows.append(cells)
    return table(caption, [heading_of(key) for key in keys], rows, numeric=numeric, css="records")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def named(name: str, index: int) -> str:
    """Return an arm's name behind a spot of its colour."""
    return f'<span class="swatch s{index % COLOURS}" aria-hidden="true"></span>{breakable(name)}'


def breakable(name: str) -> str:
    """Escape a name, and let it break after the marks that names of models are joined with, for narrow columns."""
    return re.sub(r"([_./])", r"\1<wbr>", escape(name))


def section(heading: str, *parts: str) -> str:
    """Return a section of the page; parts are HTML already."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def figure(drawing: str, caption: str) -> str:
    """Return a drawing with a caption, both HTML already."""
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"
