"""`msn-deploy datasets`."""

from __future__ import annotations

from msn_deploy.cli import output
from msn_deploy.cli.options import Json

EXAMPLES = """
msn-deploy datasets
msn-deploy datasets --json -
"""


def command(json: Json = None) -> None:
    """List the data sets that `--data` knows by name, and which of them are on this machine."""
    from msn_deploy.data.names import KNOWN, listed  # numpy, which --help does not wait for

    known = listed()
    if output.emit(known, json):
        return
    rows = [(each.name, "yes" if each.folder else "no", each.source) for each in known]
    output.show_table(rows, head=("name", "here", "images from"))
    output.say_wrapped(
        f"`--data` takes a name, or a folder or file of your own. {next(iter(KNOWN))} and what follows are downloaded "
        "when they are used, if the package `datasets` is there; or put them into $MSN_DEPLOY_DATA/NAME."
    )
