"""Small pieces of SVG: text, lines, scales and round tick values. Colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

# Width of a character over its font size, for the system fonts in bold; only used to shorten labels.
_CHARACTER_WIDTH = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From a value between low and high to a position in px between start and end; logarithmic if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, about: int) -> list[float]:
        """Return round values within the scale, roughly as many as asked for."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if 2 * math.log10(self.high / self.low) <= about else (1,)
            return [step * 10.0**k for k in decades for step in steps if self.low <= step * 10.0**k <= self.high]
        step = round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten, the smallest that is not below `rough` (> 0)."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """Write a tick with as many decimals as its neighbours need to differ."""
    gaps = [abs(b - a) for a, b in pairwise(ticks)] or [abs(value) or 1.0]
    decimals = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def drawing(width: float, height: float, label: str, parts: Iterable[str], *, css: str) -> str:
    """Wrap parts into an SVG image that says `label` to those who cannot see it."""
    said = escape(label)
    return (
        f'<svg class="{css}" role="img" aria-label="{said}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}"><title>{said}</title>{"".join(parts)}</svg>'
    )


def text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start") -> str:
    """Return a text element whose baseline starts (or is centred, or ends) at x, y."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, css: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def rectangle(x: float, y: float, width: float, height: float, *, css: str) -> str:
    """Return a filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{css}"/>'


def dot(x: float, y: float, radius: float, *, css: str) -> str:
    """Return a filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}"/>'


def path(points: Iterable[tuple[float, float]], *, css: str) -> str:
    """Return a polyline through the points; fill and stroke come from the class."""
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="{css}"/>'


def shortened(content: str, width_px: float, *, size_px: float = 14) -> str:
    """Shorten a label to what fits; the middle goes, since names of models differ at their ends."""
    room = max(4, int(width_px / (size_px * _CHARACTER_WIDTH)))
    if len(content) <= room:
        return content
    end = (room - 1) // 2
    return f"{content[: room - 1 - end]}\N{HORIZONTAL ELLIPSIS}{content[-end:]}"
