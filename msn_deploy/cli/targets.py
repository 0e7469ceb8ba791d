"""`msn-deploy targets`."""

from __future__ import annotations

from msn_deploy.cli import output
from msn_deploy.cli.options import Print
from msn_deploy.engine import TARGETS


def command(json: Print = False) -> None:
    """List the devices that engines are built for, with what they can do."""
    if output.emit(TARGETS, json):
        return
    rows = [
        (
            target.name,
            target.sm,
            "-" if target.memory_gib is None else f"{target.memory_gib:g} GiB",
            "/".join(target.precisions),
            str(target.dla_cores),
            target.jetpacks,
        )
        for target in TARGETS
    ]
    output.show_table(rows, head=("target", "arch", "memory", "precisions", "DLA", "JetPack"), right=(2, 4))
