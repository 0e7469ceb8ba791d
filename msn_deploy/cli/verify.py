"""`msn-deploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msn_deploy.cli import output
from msn_deploy.cli.options import Print
from msn_deploy.core.errors import GateError
from msn_deploy.core.verify import verify_folder


def command(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    json: Print = False,
) -> None:
    """Check every file of a folder against its recorded SHA-256, and every parent against its child."""
    findings = verify_folder(folder)
    if not output.emit(findings, json):
        rows = [(finding.file, finding.verdict, finding.why) for finding in findings]
        output.show_table(rows, head=("file", "verdict", "why"))
    broken = [finding for finding in findings if finding.verdict == "broken"]
    if broken:
        broken.sort(key=lambda finding: finding.why.startswith("made from"))  # the cause before what came from it
        first = f"{broken[0].file} ({broken[0].why})"
        raise GateError(f"{len(broken)} of {len(findings)} files are broken, the first: {first}.\nMake it again.")
