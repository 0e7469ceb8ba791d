"""Runs command lines, each in a forked process that may be killed, so that no run pays for its imports again.

The first line holds command lines to warm up with. Each further line is one order: `args`, the command line; `watch`, a
folder; `kill_after_s`, when the process is killed; `die_at`, before which rename or removal in that folder it kills
itself; `half`, after how many bytes of one file it dies, from the first file on that it opens for writing in `watch`.
Each of the last three may be null: never. Answers with the exit status of the process, negative for a signal.
"""

import json
import os
import resource
import signal
import sys
import time

from msn_deploy.cli.app import main


def _sabotage(watch: str, die_at: int | None, half: int | None) -> None:
    """Die at a chosen moment of writing below `watch`; audit events are raised before what they announce."""
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove") and str(args[0]).startswith(watch):
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        elif half and event == "open" and str(args[0]).startswith(watch) and str(args[1] or "r")[0] in "wxa":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, and would see an error instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    sys.addaudithook(hook)


def serve() -> None:
    """Warm up, then fork per line until the input ends."""
    for args in json.loads(sys.stdin.readline()):
        assert main(args) == 0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # stdout belongs to the server
            _sabotage(order["watch"], order["die_at"], order["half"])
            os._exit(main(order["args"]))
        if order["kill_after_s"] is not None:
            time.sleep(order["kill_after_s"])
            os.kill(child, signal.SIGKILL)  # one that has ended keeps its number until the next line
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"status {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


serve()
