"""What all reports have in common: templates and how they are filled, colours, how values are written, Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msn_deploy import __version__
from msn_deploy.core.errors import size_text, tamed
from msn_deploy.machine.environment import Environment

if TYPE_CHECKING:
    import jinja2

DASH = "\N{EN DASH}"
COLOURS = 6  # of arms and lines, before they repeat
LIGHT = {
    "paper": "#fdfcfa",
    "ink": "#20242a",
    "soft": "#5b626d",
    "rule": "#dfdcd5",
    "grid": "#ebe8e2",
    "zone": "#e9edf0",
    "dirty": "#f3d9d3",
    "c0": "#5c6573",
    "c1": "#0b6c8c",
    "c2": "#b0500c",
    "c3": "#6b4aa5",
    "c4": "#2d7338",
    "c5": "#a5305b",
    "faster": "#1f6f43",
    "slower": "#a8321f",
    "same": "#4f5b68",
    "ambiguous": "#8a5a00",
}
DARK = {
    "paper": "#15181c",
    "ink": "#e7e5e0",
    "soft": "#a2a9b3",
    "rule": "#343a42",
    "grid": "#262b31",
    "zone": "#252d34",
    "dirty": "#4a2620",
    "c0": "#a4adb9",
    "c1": "#5db8d8",
    "c2": "#ee9c57",
    "c3": "#b79df0",
    "c4": "#7fc98b",
    "c5": "#ee8db0",
    "faster": "#7fcf9f",
    "slower": "#f09480",
    "same": "#aab4c0",
    "ambiguous": "#e0b050",
}

_SPELLED = {
    "cpu": "CPU",
    "cuda": "CUDA",
    "d2h": "copy from device",
    "fp16": "FP16",
    "fp8": "FP8",
    "gpu": "GPU",
    "h2d": "copy to device",
    "int8": "INT8",
    "l4t": "L4T",
    "onnx": "ONNX",
    "sha256": "SHA-256",
    "utc": "UTC",
}
# Marks; an underscore only where it is not inside a word; and the places that make a link or call a person.
_MEANT = re.compile(
    r"[\\`*\[\]<>|#~]|&(?=\S)|(?<!\w)_|_(?!\w)|(?<=[a-z])(?=://)|(?<=www)(?=\.)|(?<=@)(?=\w)", re.IGNORECASE
)
_UNITS = {"bytes": "", "ms": "ms", "mib": "MiB", "mhz": "MHz", "mj": "mJ"}


def render(template: str, **context: Any) -> str:
    """Return the page that a template of `templates/` makes of its context; every text is escaped there."""
    return _templates().get_template(template).render(context)


@cache
def _templates() -> jinja2.Environment:
    import jinja2  # late: who wants no page does not pay for it

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"bytes": size_text, "fixed": fixed, "heading": heading_of}
    found.globals |= {"colours": COLOURS, "dark": DARK, "dash": DASH, "light": LIGHT}
    found.globals |= {"value_text": value_text, "version": __version__}
    return found


def measured_on(environment: Environment, *conditions: str) -> list[str]:
    """Return the line below a page's title: the machine, the conditions, the time."""
    machine = environment.machine or environment.cpu or environment.host
    when = (environment.time_utc or "").replace("T", " ").replace("+00:00", " UTC")
    return [each for each in (machine, *conditions, when) if each]


def threads_text(threads: int | None) -> str:
    """Write a number of threads; None is the runtime's choice."""
    return f"{threads} thread{'s' * (threads != 1)}" if threads else "the runtime's threads"


def fixed(value: float | None, digits: int) -> str:
    """Write a number with `digits` decimals, and a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def decimals_for(values: Iterable[float], *, digits: int = 3) -> int:
    """Return how many decimals give the smallest positive value that many significant digits."""
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
        return size_text(value)
    if key.endswith("accuracy") and 0 <= value <= 1:
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def markdown_text(text: str) -> str:
    """Return text in one line, with what Markdown or HTML would read as markup or as a link taken for itself."""
    return _MEANT.sub(_escaped, " ".join(tamed(text).split()))


def _escaped(found: re.Match[str]) -> str:
    entities = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "": "&#8203;"}
    return entities.get(found[0], f"\\{found[0]}")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return a table of cells that are plain text; columns in `right` are aligned to the right."""
    first, *others = (f"| {' | '.join(map(markdown_text, cells))} |" for cells in (head, *rows))
    rule = "".join("--:|" if at in right else "---|" for at in range(len(head)))
    return "\n".join([first, f"|{rule}", *others])
