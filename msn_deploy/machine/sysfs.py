"""Small files below /proc and /sys: their text or number, or None; nothing raises, whatever a driver does."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """Return a small file's text, or None; device-tree strings end in a NUL."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n\t") or None
    except (OSError, ValueError):
        return None


def number(path: Path) -> int | None:
    """Return a file's whole number, or None."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def folders(root: Path, pattern: str) -> list[Path]:
    """Return what matches below the root, sorted by the numbers in the names, so that cpu10 comes after cpu9."""

    def key(path: Path) -> tuple[int, str]:
        digits = "".join(letter for letter in path.name if letter.isdigit())
        return (int(digits or -1), path.name)

    try:
        return sorted(root.glob(pattern), key=key)
    except OSError:
        return []
