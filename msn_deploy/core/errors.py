"""Every error a user can meet, and the exit code it ends with.

MsnDeployError                      anything below; caught once, in cli/app.py
├── InputError            exit 2    a file, folder, name or option that cannot be used
│   ├── FoldError         exit 2    a network (part) that cannot be folded exactly
│   └── NotComparable     exit 2    two measurements that were not made alike
├── GateError             exit 1    a promise was measured and not kept
│   └── ParityError       exit 1    two stages disagree on the same input
├── MissingDependency     exit 3    a package that this step needs is not there
├── MissingDevice         exit 3    a GPU, driver or Jetson that this step needs is not there
└── InvalidMeasurement    exit 4    a measurement that must not be reported

Any other exception is a fault of ours and ends with exit 5, except what the machine refuses (disk full, out of memory:
exit 2) and Ctrl-C (exit 130).

Messages have one to three lines: what happened, with numbers; the likely cause; what to type next. They can hold
whatever is in a file or was typed, so `MsnDeployError` shortens what is long and writes out what a terminal obeys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

# What libraries put around what happened: error numbers, names of their functions, source positions; and what stays.
_NOISE = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", ""),
    (r"^(Load model from .*? failed:)?\s*\S*\.(cc|h):\d+ .*?\) (?=[A-Z])", ""),
    # TensorRT 8 "2: [builder.cpp::build::751] Error Code 2: ", 10 and later "IBuilder::build: Error Code 2: ".
    (r"^(\d+: (?=[\[A-Z]))?(\[[\w.:]+::\d+\] )?(\w+(::~?\w+)+: )?(Error Code \d+: )?", ""),
    (r"^(?:Internal Error|API Usage Error|Serialization) \((.*?)[. ]*\)$", r"\1"),
    (r"^(ModelImporter|WeightsContext)\.cpp:\d+: ", ""),
    (r"^(Myelin )?\(\[[\w.: ]*\d[\w.: ]*\] ", ""),
    (r"[.\s(]*\bIn [\w:~]+ at \S+?:\d+\)?$", ""),
    # The condition in the library's words, where a sentence follows that says the same.
    (r"^(Serialization assertion|Assertion) .*? failed\.\s*(?=[A-Z])", ""),
    (r"^Parameter check failed,? (at: \S+, )?condition: .*?\. (?=[A-Z])", ""),
    (r"Assertion failed: (.*\): )?", ""),
)
# What a terminal obeys or hides: control characters but for the line's end, marks of the direction of writing, and
# what cannot be written as UTF-8 (file names that hold other bytes).
_OBEYED = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_MOST_LINES, _MOST_CHARACTERS, _LEAST_CHARACTERS = 3, 580, 180  # of a message; what a line keeps of it at least
_CUT = " [...] "
_GUESSES, _SHOWN = 6, 15  # names in a message: of what may have been meant, and of all that are known


def tamed(text: str) -> str:
    r"""Return text that a terminal only shows: other characters are written out, as in "\x1b[1m"."""
    return _OBEYED.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()


def fitted(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text; what is too long loses its middle."""
    end = (limit - len(_CUT)) // 3
    return text if len(text) <= limit else f"{text[: limit - len(_CUT) - end]}{_CUT}{text[-end:]}"


def shown(value: object, limit: int = 120) -> str:
    """Return a value as a message names it: as Python writes it, shortened."""
    return fitted(repr(value), limit)


def message_of(text: str) -> str:
    """Return what may be said of a fault: three lines at most, of 580 characters together, that a terminal can show."""
    lines = tamed(text).split("\n")
    lines = [" ".join(lines[: 1 - _MOST_LINES]), *lines[1 - _MOST_LINES :]] if len(lines) > _MOST_LINES else lines
    while (excess := sum(map(len, lines)) - _MOST_CHARACTERS) > 0:
        longest = max(range(len(lines)), key=lambda at: len(lines[at]))
        lines[longest] = fitted(lines[longest], max(_LEAST_CHARACTERS, len(lines[longest]) - excess))
    return "\n".join(lines)


def shorten(text: object, limit: int = 240) -> str:
    """Reduce what a library says, such as its exception, to what happened: one line of at most `limit` characters."""
    short = " ".join(str(text).split())
    for noise, kept in _NOISE:
        short = re.sub(noise, kept, short)
    short = short.rstrip(". ")
    return short if len(short) <= limit else short[: limit - 6] + " [...]"


def first_line(cause: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's message, or its class where it has none."""
    return (str(cause).splitlines() or [type(cause).__name__])[0][:limit]


def root_line(cause: BaseException, limit: int = 240) -> str:
    """Return class and message, in one line, of what an exception comes from: the innermost that says something."""
    told = cause
    while (inner := told.__cause__ or (None if told.__suppress_context__ else told.__context__)) is not None:
        told = inner if str(inner).strip() else told
        if inner is not told:
            break
    return f"{type(told).__name__}: {shorten(told, limit)}"


class MsnDeployError(Exception):
    """Base of all errors meant for the user; the class owns its exit code."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(message_of(message))


class InputError(MsnDeployError):
    """A file, folder, name or option from the user that cannot be used."""


class FoldError(InputError):
    """A layer that cannot be folded into plain weights without changing the function; code: why, for machines."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class NotComparable(InputError):
    """Two measurements that were not made alike; the message names the first difference."""


class GateError(MsnDeployError):
    """A promise (parity, accuracy, integrity) was measured and not kept."""

    exit_code = 1


class ParityError(GateError):
    """A stage of a network disagrees with the first on the same input by more than the stated limit."""

    def __init__(self, *, source: str, stage: str, worst: float, limit: str) -> None:
        super().__init__(
            f"{source}: the first stage that differs is {stage!r}: max |difference of outputs| = {worst:.3g}, "
            f"allowed is {limit}.\n"
            "Nothing was written. `--no-fold` and `--no-simplify` leave stages out."
        )
        self.stage, self.worst = stage, worst


class MissingDependency(MsnDeployError):
    """A package that this step needs could not be imported."""

    exit_code = 3


class MissingDevice(MsnDeployError):
    """Hardware or a driver that this step needs is not on this machine."""

    exit_code = 3


class InvalidMeasurement(MsnDeployError):
    """A measurement whose conditions were too poor to report."""

    exit_code = 4


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" or what is known, to finish an error message.

    Names that begin with the word come first, then the nearest one, then all names, of which a few are shown. Capitals
    make no difference.
    """
    lower = {name.lower(): name for name in known}
    longer = [name for low, name in lower.items() if len(word) > 2 and low.startswith(word.lower())]
    close = longer[:_GUESSES] or [lower[low] for low in difflib.get_close_matches(word.lower(), lower, n=1)]
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"; known are: {', '.join(known[:_SHOWN])}{more}."


def size_text(count: float | None) -> str:
    """Write a number of bytes, such as "28 GiB"; "-" for None."""
    if count is None:
        return "-"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.0f} {unit}" if count >= 100 * size else f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"
