"""Command lines in this process: what they need is loaded once, and nothing of them stays."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from msn_deploy.cli import output
from msn_deploy.cli.app import main


@dataclass(frozen=True)
class Outcome:
    """What one command line did."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small train ten times slower with two threads on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call(*args: object) -> Outcome:
    """Run a command line in this process and leave the process as it was."""
    logger = logging.getLogger("msn_deploy")
    before = logger.handlers, logger.propagate, logger.level
    out, err = io.StringIO(), io.StringIO()
    try:
        with one_thread(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(arg) for arg in args])
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
        output._state = output._State()
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())
