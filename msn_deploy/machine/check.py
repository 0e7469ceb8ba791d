"""What is one line of `doctor`?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of `doctor`: verdict "ok", "warning" or "problem", what was found, and what to type ("" if nothing)."""

    name: str
    verdict: str
    found: str
    hint: str = ""


def warning(name: str, found: str, hint: str) -> Check:
    """Return the line of something that limits what works here."""
    return Check(name=name, verdict="warning", found=found, hint=hint)


def problem(name: str, found: str, hint: str) -> Check:
    """Return the line of something that has to be mended first."""
    return Check(name=name, verdict="problem", found=found, hint=hint)
