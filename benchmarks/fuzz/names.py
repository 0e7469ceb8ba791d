"""File names that nobody expects: not UTF-8, with line breaks and escapes, very long, like options."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from random import Random

ODD_NAMES = (
    b"\xff\xfe.bin", b"caf\xe9", b"a\nb", b"a\x1b[31mb", b"a\x07b", b"-dash", b"--out", b"--help", b" blank ", b"a'b",
    b'a"b', b"$(touch victim)", b"a;b", b"a|b", b"a*b?",
    b"%s%n", b"{0}", b"a\\b", "é漢字".encode(), "\u202egnp.txt".encode(), "\u2028x".encode(), b"n" * 200, b"n" * 251,
    b".hidden", b"a b", b"a\tb", b"<img src=x>", b"a&b", b"con",
    b"a\rb", b"\x7f", b"\xc2\x9b2J", b"a=b", b"a:b", b"~", b"#", b"!", b"x" * 180, "\U0001f600".encode(),
    b"\xed\xa0\x80", b"a,b", b"a@b", b"camera:0", b"[red]x[bold]",
)  # fmt: skip


def with_odd_names(line: str, place: Path, rng: Random) -> tuple[list[str], str]:
    """Give files and folders of a command line odd names; return its words, and the name for people."""
    odd = os.fsdecode(rng.choice(ODD_NAMES))
    args = []
    for word in shlex.split(line):
        found = re.search(r"\{(.*?)\}", word)
        if found is not None:
            source = place / "in" / found[1]
            suffix = "".join(source.suffixes)
            target = place / "in" / ((odd[: 250 - len(suffix)] if suffix else odd) + suffix)
            try:
                source.rename(target)
                side = source.with_name(f"{source.name}.json")
                if side.is_file():
                    side.rename(place / "in" / f"{target.name}.json")
            except OSError:  # too long with its suffix
                target = source
            word = word.replace(found[0], rng.choice((f"in/{target.name}", str(target))))
            if found[1] == "folders":
                _odd_inside(target, odd, rng)
        args.append(word.replace("NAME", odd))
    if line == "verify in" or line.startswith("bundle in"):
        _odd_inside(place / "in", odd, rng)
    return args, repr(odd)


def _odd_inside(folder: Path, odd: str, rng: Random) -> None:
    """Give one or two files below a folder, and perhaps a folder, an odd name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in rng.sample(files, min(2, len(files))):
        try:
            path.rename(path.with_name(odd + path.suffix))
        except OSError:
            continue
    folders = [path for path in sorted(folder.rglob("*")) if path.is_dir()]
    if folders and rng.random() < 0.3:
        chosen = rng.choice(folders)
        chosen.rename(chosen.with_name(odd))
