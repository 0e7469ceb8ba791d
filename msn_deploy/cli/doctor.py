"""`msn-deploy doctor`."""

from __future__ import annotations

from msn_deploy.cli import output
from msn_deploy.cli.options import Print
from msn_deploy.engine import checks


def command(json: Print = False) -> int:
    """Check this machine: packages, TensorRT, driver, memory; exit 3 if something is a problem."""
    found = checks()
    if not output.emit(found, json):
        rows = [(check.verdict, check.name, check.found) for check in found]
        output.show_table(rows, head=("verdict", "what", "found"))
        for check in found:
            if check.verdict != "ok" and check.hint:
                output.say(f"{check.name}: {check.hint}")
    return 3 if any(check.verdict == "problem" for check in found) else 0
