"""The public names of eight TensorRT releases, as their Python bindings have them.

`trt_api.json` is the compact form: class -> which releases -> member names, where "01111110" means all of the releases
but the first and the last; the class "" is the module itself, and a member of an enum has its value. `releases` says
which wheel each was read from. A name in it exists; that it works is not shown. test_engine_bindings.py reads those of
trt_bindings.WHEELS again. A release is added there and to SOURCES, and recorded in a folder that has one JSON file for
each release, NAME.json, written by trt_real.py:

    python tests/engine/trt_api.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from trt_bindings import WHEELS

FIXTURE = Path(__file__).with_name("trt_api.json")
SOURCES = {
    **WHEELS,
    "10.0.1": "tensorrt-cu12-bindings==10.0.1",
    "10.16.1": "tensorrt-cu12-bindings==10.16.1.11",
    "11.0.0": "tensorrt-cu12-bindings==11.0.0.114",
    "rtx-1.7.1": "tensorrt-rtx-cu13==1.7.1.116",
}
RELEASES = ("8.6.1", "10.0.1", "10.3.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0", "rtx-1.7.1")
MODULE = ""
Names = Mapping[str, frozenset[str]]


@cache
def recorded() -> dict[str, Names]:
    """Return release -> class -> names, where a member of an enum is NAME=VALUE."""
    compact = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert tuple(compact["releases"]) == RELEASES
    return {
        release: {
            name: frozenset(member for mask, members in groups.items() if mask[at] == "1" for member in members.split())
            for name, groups in compact["classes"].items()
        }
        for at, release in enumerate(RELEASES)
    }


@cache
def api() -> dict[str, Names]:
    """Return release -> class -> names."""
    return {release: bare(classes) for release, classes in recorded().items()}


def bare(classes: Names) -> Names:
    """Return class -> names, without the values of enums."""
    return {kind: frozenset(name.partition("=")[0] for name in names) for kind, names in classes.items()}


def values(release: str, enum: str) -> dict[str, int]:
    """Return the members of an enum with their values."""
    pairs = (member.partition("=") for member in recorded()[release][enum])
    return {name: int(value) for name, _, value in pairs}


def condense(folder: Path) -> str:
    """Return the text of the fixture for a folder of JSON files, one per release."""
    tables = [json.loads((folder / f"{release}.json").read_text(encoding="utf-8"))["classes"] for release in RELEASES]
    classes: dict[str, dict[str, str]] = {}
    for name in sorted({name for table in tables for name in table}):
        groups: dict[str, list[str]] = {}
        for member in sorted({member for table in tables for member in table.get(name, ())}):
            mask = "".join("01"[member in table.get(name, ())] for table in tables)
            groups.setdefault(mask, []).append(member)
        classes[name] = {mask: " ".join(members) for mask, members in sorted(groups.items())}
    releases = {release: SOURCES[release] for release in RELEASES}
    return json.dumps({"releases": releases, "classes": classes}, indent=0) + "\n"


if __name__ == "__main__":
    FIXTURE.write_text(condense(Path(sys.argv[1])), encoding="utf-8")
