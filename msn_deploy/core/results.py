"""How a result looks in Python: a short line when it is printed, a table in a notebook, plain values on request."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import Any

from msn_deploy.core.reader import parse_json

_LONGEST = 60  # of a text that is shown whole


class Result:
    """The base of dataclasses that public functions return; give them `repr=False`."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON has it, as the file of `--json` does."""
        value: dict[str, Any] = parse_json(json.dumps(self, default=plain), source="the result")
        return value

    def shown(self) -> Iterator[tuple[str, str]]:
        """Yield name and short text of what people look at: by default each field that says something."""
        for each in fields(self):  # type: ignore[arg-type]  # a dataclass by the rule of this class
            value = getattr(self, each.name)
            if value is not None and not (isinstance(value, Collection) and not len(value)):
                yield each.name, _brief(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in self.shown())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in self.shown())
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def plain(value: Any) -> Any:
    """Turn what JSON does not know into what it knows: dataclasses into their fields, paths and others into text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str | Path):
        text = str(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    if isinstance(value, Collection):
        return f"<{len(value)}>"
    if is_dataclass(value):
        return str(getattr(value, "path", f"{type(value).__name__}(...)"))
    return str(value)
