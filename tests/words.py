"""Turns of phrase that a reader stumbles over, searched for in what users read; run by `make check`.

Read are the README, docs/, CONTRIBUTING, what is unreleased in the CHANGELOG, and every string and docstring of the
package. There are no exceptions: write what the list says instead.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AROUND = 3  # words on either side of a phrase that make it one entry

# What is searched for, and what to write.
PHRASES = {
    r"(?<!\bthere )\b(?:is|are|was|were|be) no (?!longer|more|less|other|faster|slower|larger|smaller)": "is not a",
    r"\b(?:leave|leaves|leaving|left)\b[^.;:]{0,40}? away\b": "leave out",
    r"\b(?:hold|holds|held|holding)\b[^.;:]{0,60}? against\b": "compare with",
    r"\bso many\b": "N, or at most N",
    r"\b(?:goes|go|went) on\b": "continue, resume",
    r"\b(?:lie|lies|lay|lying) (?:beside|below|in|at|there|elsewhere|next)\b": "is in, is next to",
    r"\b(?:stand|stands|stood) (?:in|where|there|at|on)\b": "is in",
    r"\bas (?:it|they) (?:was|were) typed\b": "as typed by the user",
    r"\bin the place of\b": "instead of",
    r"\b(?:take|takes|took) the place of\b": "replace",
    r"\bnothing of (?:this|that|it|what|a|the)\b": "none of",
    r"\b(?:is|are|was|were) told\b(?! apart)": "is reported, is shown",
    r"\b(?:speak|speaks|spoke) of\b": "describe",
    r"\b(?:says?|said) nothing of\b": "does not record",
    r"\b(?:is|are) whole\b": "is complete",
    r"\bexchanged\b": "replaced",
    r"\bso may you\b": "you can do the same",
    r"\bto the bit\b": "bit for bit",
    r"\bcomes? right\b": "recovers",
    r"\bwith commas between\b": "comma-separated",
    r"\bno several\b": "a single",
}


def texts() -> Iterator[tuple[Path, int, str]]:
    """Yield file, line and text of each paragraph and each string."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if path.name == "CHANGELOG.md":
            text = re.split(r"^## (?!Unreleased)", text, flags=re.M)[0]
        text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S)  # code
        for paragraph in re.finditer(r"(?:.+\n?)+", text):
            yield path, text.count("\n", 0, paragraph.start()) + 1, paragraph[0]
    for path in sorted((ROOT / "msn_deploy").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield (
                    path,
                    node.lineno,
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield path, node.lineno, node.value


def phrases_of(text: str) -> Iterator[tuple[str, str]]:
    """Yield each phrase of a text, with the words around it in its sentence, and what to write."""
    for sentence in re.split(r"(?<=[.;:!?])\s+", re.sub(r"\s+", " ", text)):
        for pattern, better in PHRASES.items():
            for found in re.finditer(pattern, sentence, re.I):
                before, after = sentence[: found.start()].split(), sentence[found.end() :].split()
                yield " ".join([*before[-AROUND:], found[0].strip(), *after[:AROUND]]), better


def complaints() -> list[str]:
    """Return every phrase that is there, with where it is and what to write."""
    return [
        f'{path.relative_to(ROOT)}:{line}: "{phrase}". Write: {better}.'
        for path, line, text in texts()
        for phrase, better in phrases_of(text)
    ]


if __name__ == "__main__":
    found = complaints()
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
