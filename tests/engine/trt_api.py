"""The public names of eight TensorRT releases, as their Python bindings have them.

`trt_api.json` is the compact form: class -> which releases -> member names, where "01111110" means all of RELEASES but
the first and the last; the class "" is the module itself. A name in it exists; that it works is not shown.
Made from one JSON file per release (`{"version", "classes": {class: [member]}, "top": [name]}`) with

    python tests/engine/trt_api.py FOLDER
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

FIXTURE = Path(__file__).with_name("trt_api.json")
RELEASES = ("8.6.1", "10.0.1", "10.3.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0", "rtx-1.7.1")
MODULE = ""


@cache
def api() -> dict[str, dict[str, frozenset[str]]]:
    """Return release -> class -> names."""
    compact = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert tuple(compact["releases"]) == RELEASES
    return {
        release: {
            name: frozenset(member for mask, members in groups.items() if mask[at] == "1" for member in members.split())
            for name, groups in compact["classes"].items()
        }
        for at, release in enumerate(RELEASES)
    }


def condense(folder: Path) -> str:
    """Return the text of the fixture for a folder of JSON files, one per release."""
    raw = [json.loads((folder / f"{release}.json").read_text(encoding="utf-8")) for release in RELEASES]
    tables = [{MODULE: each["top"], **each["classes"]} for each in raw]
    classes: dict[str, dict[str, str]] = {}
    for name in sorted({name for table in tables for name in table}):
        groups: dict[str, list[str]] = {}
        for member in sorted({member for table in tables for member in table.get(name, ())}):
            mask = "".join("01"[member in table.get(name, ())] for table in tables)
            groups.setdefault(mask, []).append(member)
        classes[name] = {mask: " ".join(members) for mask, members in sorted(groups.items())}
    return json.dumps({"releases": RELEASES, "classes": classes}, indent=0) + "\n"


if __name__ == "__main__":
    FIXTURE.write_text(condense(Path(sys.argv[1])), encoding="utf-8")
