"""`msn-deploy verify`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Json
from msn_deploy.core.errors import GateError
from msn_deploy.pipeline.verify import Finding, first_broken, verify_folder

EXAMPLES = """
msn-deploy verify runs
"""


def command(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    data: Annotated[
        bool | None,
        typer.Option(
            "--data/--no-data",
            help="Load the images again that are on this machine: also folders that the run names, or none.",
            show_default="those of known names",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Check every file of a folder against its SHA-256, and every child against its parents, down to the data."""
    from msn_deploy.data.sources import is_as_recorded, is_known_as_recorded  # numpy: --help does not wait for it

    findings = verify_folder(folder, data={None: is_known_as_recorded, True: is_as_recorded, False: None}[data])
    if not output.emit(findings, json):
        shown = [each for each in findings if output.is_verbose() or each.verdict != "ok"]
        if shown:
            rows = [(finding.file, finding.verdict, finding.why) for finding in shown]
            output.show_table(rows, head=("file", "verdict", "why"))
            output.say("")
        if output.is_verbose():
            for line in [*chains(findings), *outside(findings)]:
                output.say_wrapped(line, hanging="    ")
        output.say_wrapped(summary(findings))
    first = first_broken(findings)
    if first is not None:
        count = Counter(finding.verdict for finding in findings)
        others = f", and {count['outdated']} outdated" if first.verdict == "broken" and count["outdated"] else ""
        whole = "" if first.verdict == "broken" else "No file is damaged. "
        more = f" {count['stale']} more come from what is {first.verdict}." if count["stale"] else ""
        raise GateError(
            f"{count[first.verdict]} of {len(findings)} files are {first.verdict}{others}, the first: {first.file} "
            f"({first.why}).\n{whole}Make it again.{more}"
        )


def chains(findings: list[Finding]) -> list[str]:
    """Return one line per file that nothing here was made from: what it was made from, and so on down to the data.

    A file with several parents is followed along the first, and the others are counted.
    """
    known = {finding.file: finding for finding in findings}
    above = {link.name for finding in findings for link in finding.parents}
    lines = []
    for finding in findings:
        if finding.file in above or not finding.parents:
            continue
        steps = {finding.file: finding.file}
        data: dict[str, None] = {}
        at: Finding | None = finding
        while at is not None:
            data |= {f"{link.name} (data)": None for link in at.parents if link.is_data}
            links = [link for link in at.parents if not link.is_data and link.name not in steps]
            if links:
                more = f" and {len(links) - 1} more" if links[1:] else ""
                steps[links[0].name] = links[0].name + more
            at = known.get(links[0].name) if links else None
        lines.append(" <- ".join([*steps.values(), *([" + ".join(data)] if data else [])]))
    return lines


def summary(findings: list[Finding]) -> str:
    """Return how many files are as recorded, and what they were made from that is not in the folder."""
    ok = sum(finding.verdict == "ok" for finding in findings)
    links = [link for finding in findings for link in finding.parents if link.state not in ("here", "changed")]
    named = dict.fromkeys(f"{link.name} ({link.state})" for link in links)
    origin = f", made from {', '.join(named)}" if named else ""
    return f"{ok} of {len(findings)} files are as recorded{origin}"


def outside(findings: list[Finding]) -> list[str]:
    """Return one line per parent that is not a file of the folder: what it is, its digest, and what is known of it."""
    links = (link for finding in findings for link in finding.parents if link.state not in ("here", "changed"))
    return [f"{link.name}: {link.role} {link.sha256}, {link.state}" for link in dict.fromkeys(links)]
