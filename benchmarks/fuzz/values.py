"""What stands where something else should: as text for JSON and TOML, as words for a command line, as trees."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

LONG = 100_000
_DEEP = 20_000
# Numbers at the ends of types, and magnitudes that nobody means.
NUMBERS = (
    *("-1", "0", "1", "2", "0.5", "-0.0", "3", "7", "255", "256", "65535", "65536", "1000000"),
    *("2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
    *("1e-45", "1e-320", "1e38", "1e39", "1e308", "-1e308"),
)
TEXTS = (
    *("", " ", ".", "..", "-", "--", "-x", "--help", "nan", "inf", "null", "true", "[]", "{}", "0x10", "1,2", "=", ":"),
    *("../../victim/net", "../victim", "/dev/null", "/dev/stdin", "/proc/self/mem", "~", "a/b", "a\\b", "a\nb",
    "a\rb", "a\tb"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "\x7f", "\x9b2J", "\u202egnp.exe", "\u2028", "\ufeff", "é",
    "漢字", "\U0001f600"),
    *("<img src=x onerror=alert(1)>", "|", "$(touch victim/ran)", "`touch victim/ran`", "; touch victim/ran", "%s%n",
    "{0}", "${HOME}"),
    *("x" * 300, "y" * 5000, "..." * 200, "fp32", "int8", "detection", "digits", "1x1", "bn"),
)  # fmt: skip
_LONG_JSON = (f'"{"z" * LONG}"', "9" * 400, "9" * 5000, "[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "1" + "}" * _DEEP)
JSON = (
    *("null", "true", "false", "[]", "{}", "[[]]", "[null]", '{"a": 1}', "NaN", "Infinity", "-Infinity", "1e400",
    "-1e400"),
    *NUMBERS,
    *(json.dumps(text) for text in TEXTS),
    *('"\\ud800"', '"\\udc80x"', "[1, 2, 3]", '["a"]', "[1e308, 1e308]", '[{"a": [1]}]', json.dumps(list(range(1000)))),
    *_LONG_JSON,
)  # fmt: skip
TOML = (
    *("true", "false", "[]", "{}", "[[1]]", "nan", "inf", "-inf", "1979-05-27", "07:32:00", "0b1", "0xff", "1_000",
    "''", '""'),
    *NUMBERS,
    *(json.dumps(text) for text in TEXTS if "\x00" not in text and "\x7f" not in text),
    *("'''a\nb'''", '["a", "b"]', "[1, 2, 3]", "[1, 1, 28, 28, 1]", "[1, 3, 3000, 3000]", "[1, 1, 2147483648, 1]",
    "{ a = 1 }"),
    *(f'"{"z" * LONG}"', "9" * 400, "9" * 5000, "[" * _DEEP + "]" * _DEEP, "{a=" * _DEEP + "1" + "}" * _DEEP, "1e400"),
)  # fmt: skip


def words(rng: Random) -> str:
    """Return a word for a command line; no process can be given a zero byte."""
    return rng.choice((*NUMBERS, *(text for text in TEXTS if "\x00" not in text), "z" * LONG, "9" * 400))


class _Raw(str):
    """JSON text that stands in a tree as it is."""


def changed_tree(tree: Any, rng: Random) -> str:
    """Return the JSON text of a tree that was changed in one to three places."""
    root = [json.loads(json.dumps(tree))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(root))
        holder, key = rng.choice(places[1:] or places)
        rng.choice((_replace, _replace, _replace, _remove, _rename, _scale, _wrap, _repeat, _retype))(holder, key, rng)
    raws: list[str] = []

    def written(node: Any) -> Any:
        if isinstance(node, _Raw):
            raws.append(node)
            return f"\x00raw{len(raws) - 1}\x00"
        if isinstance(node, dict):
            return {name: written(each) for name, each in node.items()}
        return [written(each) for each in node] if isinstance(node, list) else node

    text = json.dumps(written(root[0] if root else None), ensure_ascii=rng.random() < 0.5)
    for at, raw in enumerate(raws):
        text = text.replace(json.dumps(f"\x00raw{at}\x00"), raw)
    return text


def _places(holder: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        found.append((holder, key))
        if isinstance(holder[key], dict | list):
            found += _places(holder[key])
    return found


def _replace(holder: Any, key: Any, rng: Random) -> None:
    holder[key] = _Raw(rng.choice(JSON))


def _remove(holder: Any, key: Any, rng: Random) -> None:
    del holder[key]


def _rename(holder: Any, key: Any, rng: Random) -> None:
    if isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)


def _scale(holder: Any, key: Any, rng: Random) -> None:
    """Give a number another magnitude."""
    if isinstance(holder[key], int | float):
        by: Callable[[Any], Any] = rng.choice(
            (lambda n: -n, lambda n: n * 10**9, lambda n: n + 1, lambda n: n - 1, lambda n: n * 0.37,
            lambda n: n * 1e300)
        )  # fmt: skip
        holder[key] = by(holder[key])
    else:
        _replace(holder, key, rng)


def _wrap(holder: Any, key: Any, rng: Random) -> None:
    holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, [holder[key]] * 3))


def _repeat(holder: Any, key: Any, rng: Random) -> None:
    if isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 10, 1000))
    else:
        holder[f"{key}2"] = holder[key]


def _retype(holder: Any, key: Any, rng: Random) -> None:
    value = holder[key]
    holder[key] = rng.choice((str(value), [], {}, bool(value), None, len(str(value)), float(len(str(value)))))
