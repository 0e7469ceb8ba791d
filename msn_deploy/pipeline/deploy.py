"""`bundle --to`: one command from the workstation to the report of a device, over the user's own ssh.

Push, check, install, build, evaluate, measure, fetch. What the device has done it does not do again: the name of its
folder there holds the bundle's digest, a cut push resumes where it ended, and `step` of the bundle outlives the
connection. A folder appears on either side only once all of it is there and was checked.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from msn_deploy.core.artifacts import unpack
from msn_deploy.core.errors import (
    GateError,
    InputError,
    InvalidMeasurement,
    MissingDependency,
    MissingDevice,
    MsnDeployError,
    size_text,
)
from msn_deploy.core.partials import partial_folder
from msn_deploy.core.progress import Progress, silent
from msn_deploy.pipeline.bundle import SCRIPTS, BundleReport

State = Literal["done", "done before", "left out", "failed"]
_HOME = "msn-deploy"  # below the home of the device's user
_CONNECTION = 255  # ssh's own exit code
# A connection that has died is noticed within a minute.
_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
_CHUNK = 1 << 18
_ERRORS: dict[int, type[MsnDeployError]] = {
    kind.exit_code: kind for kind in (GateError, InputError, MissingDevice, InvalidMeasurement)
}
_IS_REPORT = "MANIFEST.json"  # what bench.sh puts into every report
_AGAIN = "Type the same command again: it resumes here."

_LOOK = """\
mkdir -p "$1" && cd "$1" || exit 2
if [ -d "./$2" ]; then have=unpacked; elif [ -f "./$2.part" ]; then have=$(wc -c <"./$2.part"); else have=0; fi
echo "have:" $have
df -Pk . | tail -n 1
"""
# 71 what arrived is not what was sent; 72 it cannot be unpacked, which a full disk is a reason for.
_UNPACK = """\
cd "$1" || exit 2
name=./$2 # which may begin with a dash
clean() { rm -rf "$name.part" "$name.unpacking"; exit "$1"; }
sum=$(sha256sum <"$name.part")
[ "${sum%% *}" = "$3" ] || clean 71
rm -rf "$name.unpacking"
mkdir "$name.unpacking" && tar xf "$name.part" -C "$name.unpacking" || clean 72
"$name.unpacking/$4/verify" || clean 71
mv "$name.unpacking/$4" "$name" || clean 72
rm -rf "$name.part" "$name.unpacking"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became of a step: "push", "verify", "install", "build", "eval", "bench" or "fetch".

    code: its exit code. said: the last line of one that failed.
    """

    name: str
    state: State
    code: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a bundle fared on its device. folder: there, below the user's home. report: what was fetched, if anything."""

    bundle: BundleReport
    to: str
    folder: str
    steps: tuple[Step, ...]
    report: Path | None


def deploy(
    bundle: BundleReport,
    to: str,
    *,
    report: Path,
    data: str | None = None,
    replicates: int = 1,
    ssh: Sequence[str] = ("ssh",),
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Deployment:
    """Bring a bundle to a device and its report back.

    Args:
        bundle: What `bundle` packed.
        to: The device as ssh takes it, such as user@host.
        report: Folder for what the device measured; an older one is replaced once the new one is complete.
        data: What `eval` takes there; None leaves it out.
        replicates: Engines of each model.
        ssh: The command, with options of its own.
        tell: Called with each line that a step prints.
        progress: Told of the push.

    Returns:
        All steps, also those that failed while later ones could still run; `check` raises for those.

    Raises:
        MissingDependency: There is no ssh.
        MissingDevice: No connection, or it was cut.
        GateError: What arrived is not what was sent.
        InputError: The device's disk has no room, `to` is not a device, or `report` exists and is not a report.
        MsnDeployError: A step failed that all later ones need; the class is that of its exit code.
    """
    if to.startswith("-") or not to.strip() or any(char.isspace() for char in to):
        raise InputError(f"`--to {to}` is not a device.\nGive what you type after `ssh`, such as user@host.")
    if os.path.lexists(report) and not (report / _IS_REPORT).is_file():
        raise InputError(f"{report} exists and is not the report of a bundle.\nGive another `--report`.")
    name = f"{bundle.path.stem}-{bundle.digest[:12]}"
    with _Device(to, ssh, tell) as device:
        steps = _pushed(device, bundle, name, progress)
        folder = f"{_HOME}/{name}"
        if bundle.wheels:
            steps.append(device.step(folder, "install", "./install.sh"))
            _need(steps[-1], to)
        else:
            tell("install: left out, the bundle has no wheels")
            steps.append(Step(name="install", state="left out"))
        many = ["--replicates", str(replicates)] if replicates > 1 else []
        steps.append(device.step(folder, "build", "./build.sh", *many))
        if device.run('cd "$1" && ls engines/*.engine', folder).returncode:
            _need(steps[-1], to)
        if data is not None and "made .venv" in device.run('"$1/verify" --states', folder).stdout.splitlines():
            steps.append(device.step(folder, "eval", "./eval.sh", data))
        else:
            tell("eval: left out, " + ("no --data" if data is None else "for trtexec measures no accuracy"))
            steps.append(Step(name="eval", state="left out"))
        steps.append(device.step(folder, "bench", "./bench.sh"))
        steps.append(_fetch(device, folder, report))
    there = report if steps[-1].state == "done" else None
    return Deployment(bundle=bundle, to=to, folder=folder, steps=tuple(steps), report=there)


def check(deployment: Deployment) -> None:
    """Raise for the first step that failed, with the exit code that it ended with on the device."""
    for step in deployment.steps:
        _need(step, deployment.to)


def _need(step: Step, to: str) -> None:
    if step.state == "failed":
        error = _ERRORS.get(step.code, MsnDeployError)(
            f"{step.name} ended with exit code {step.code} on {to}: {step.said or 'it said nothing'}\n"
            "The same command begins again with this step."
        )
        error.exit_code = step.code
        raise error


class _Device:
    """A device behind ssh: one connection for all, so that a password is typed once."""

    def __init__(self, to: str, ssh: Sequence[str], tell: Callable[[str], None]) -> None:
        self.to, self.tell = to, tell
        self._ssh = [*ssh, *_ALIVE]
        self._stack = ExitStack()
        self._scratch = self._stack.enter_context(partial_folder())
        self._socket = self._scratch / "ssh"  # short: a socket's path has 104 characters at most
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Device:
        errors = self._scratch / "errors"
        # With ControlPersist of the user's own configuration, ssh would go into the background and end here.
        options = ["-M", "-N", "-o", "ControlPersist=no", "-S", str(self._socket)]
        command = [*self._ssh, *options, "--", self.to]
        try:
            with errors.open("wb") as stream:
                self._master = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream)
        except OSError as cause:
            self._stack.close()
            raise MissingDependency(
                f"{self._ssh[0]} does not start: {cause.strerror}.\nInstall it with: sudo apt install openssh-client"
            ) from None
        while not self._socket.exists() and self._master.poll() is None:
            time.sleep(0.02)
        if self._master.poll() is not None:
            said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            self.__exit__()
            raise MissingDevice(f"no connection to {self.to}: {''.join(said) or 'ssh ended'}.\nTry: ssh {self.to}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._master is not None:
            self._master.terminate()
            self._master.wait()
        self._stack.close()

    def start(
        self, script: str, *words: str, stdin: int | None = None, merged: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a script of sh there, whatever the user's shell is."""
        remote = f"exec sh -c {shlex.quote(script)} sh {shlex.join(words)}"
        return subprocess.Popen(
            [*self._ssh, "-S", str(self._socket), "--", self.to, remote],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        )

    def run(self, script: str, *words: str, send: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script of sh there to its end; `send` is its stdin. Raises MissingDevice for a cut connection."""
        process = self.start(script, *words, stdin=None if send is None else subprocess.PIPE)
        out, errors = process.communicate(send)
        said = errors.decode(errors="replace").strip()
        self.whole(process.returncode, said)
        return subprocess.CompletedProcess(words, process.returncode, out.decode(errors="replace"), said)

    def whole(self, code: int, said: str) -> None:
        """Raise MissingDevice where ssh says that the connection ended."""
        if code == _CONNECTION or code < 0:
            last = said.splitlines()[-1:]
            raise MissingDevice(f"the connection to {self.to} ended: {''.join(last) or 'ssh says no more'}.\n{_AGAIN}")

    def step(self, folder: str, name: str, *words: str) -> Step:
        """Do a step of the bundle, or wait for one that still runs; its lines go to `tell`."""
        last = first = ""
        with self.start('cd "$1" && shift && exec ./step "$@"', folder, name, *words, merged=True) as process:
            for line in _lines(process.stdout):
                first, last = first or line, line
                self.tell(line)
        code = process.returncode
        self.whole(code, last)
        if code:
            return Step(name=name, state="failed", code=code, said=last)
        return Step(name=name, state="done before" if first == f"{name}: done before" else "done")


def _lines(stream: IO[bytes] | None) -> list[str] | map[str]:
    return map(lambda line: line.decode(errors="replace").rstrip(), stream) if stream is not None else []


def _all(stream: IO[bytes] | None) -> str:
    return stream.read().decode(errors="replace").strip() if stream is not None else ""


def _pushed(device: _Device, bundle: BundleReport, name: str, progress: Progress) -> list[Step]:
    """Bring the tarball there and unpack it, where that was not done before, and check it."""
    looked = device.run(_LOOK, _HOME, name)
    have = re.search(r"^have: (\d+|unpacked)$", looked.stdout, re.MULTILINE)  # a login shell may say more
    if looked.returncode or have is None:
        raise InputError(f"{device.to} makes no folder {_HOME}: {looked.stderr or 'it says nothing'}.")
    if have[1] == "unpacked":
        device.tell(f"push: done before, {_HOME}/{name}")
        verify = (SCRIPTS / "verify").read_bytes()  # the one there may have been changed as well
        found = device.run('cd "$1" && exec sh -s "$2"', f"{_HOME}/{name}", bundle.digest, send=verify)
        if found.returncode:
            said = f"{device.to}: {found.stderr.splitlines()[0] if found.stderr else 'verify failed'}."
            if found.returncode != GateError.exit_code:
                raise InputError(f"{said}\n{_AGAIN}")
            remove = shlex.join(["ssh", device.to, shlex.join(["rm", "-r", f"{_HOME}/{name}"])])
            raise GateError(f"{said}\nWhat was pushed was changed there. Remove it: {remove}")
        device.tell(f"verify: {found.stdout.strip()}")
        return [Step(name="push", state="done before"), Step(name="verify", state="done")]
    there = int(have[1])
    if there > bundle.bytes:
        raise InputError(f"{device.to} has {there} of {bundle.bytes} bytes.\nRemove {_HOME}/{name}.part there.")
    free = re.search(r"\s(\d+)\s+\d+%", looked.stdout[have.end() :])  # KiB; what `df` cannot tell the push will
    need = 2 * bundle.bytes - there  # the rest of the tarball, and what it holds
    if free and int(free[1]) * 1024 < need:
        raise InputError(
            f"{device.to} has {size_text(int(free[1]) * 1024)} free, and the bundle needs {size_text(need)}.\n"
            "Nothing was pushed. Free some space there."
        )
    device.tell(f"push: {size_text(bundle.bytes - there)} to {device.to}:{_HOME}/{name}")
    _push(device, bundle, name, there, progress)
    unpacked = device.run(_UNPACK, _HOME, name, bundle.sha256, bundle.path.stem)
    if unpacked.returncode == 71:
        raise GateError(f"what arrived on {device.to} is not what was sent; it was removed there.\n{_AGAIN}")
    if unpacked.returncode:
        why = (unpacked.stderr.splitlines() or ["no reason given"])[0]
        raise InputError(f"{device.to} cannot unpack the bundle: {why}.\nIt was removed there. Free some space.")
    device.tell(f"verify: {unpacked.stdout.strip()}")
    return [Step(name="push", state="done"), Step(name="verify", state="done")]


def _push(device: _Device, bundle: BundleReport, name: str, there: int, progress: Progress) -> None:
    """Send the bytes after the first `there`; what arrived stays there if the connection is cut."""
    with device.start('cat >>"$1/$2.part"', _HOME, name, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        with bundle.path.open("rb") as stream, suppress(BrokenPipeError):
            stream.seek(there)
            sent = there
            while chunk := stream.read(_CHUNK):
                process.stdin.write(chunk)
                sent += len(chunk)
                progress(sent, bundle.bytes, "push")
        with suppress(BrokenPipeError):
            process.stdin.close()
        said = _all(process.stderr)
    device.whole(process.returncode, said)
    if process.returncode:
        device.run('rm -f "$1/$2.part"', _HOME, name)
        why = (said.splitlines() or ["no reason given"])[0]
        raise InputError(f"{device.to} cannot take the bundle: {why}.\nIt was removed there. Free some space.")


def _fetch(device: _Device, folder: str, report: Path) -> Step:
    """Bring the report here, whole or not at all."""
    report.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(report.parent) as scratch:
        packed, unpacked = scratch / "report.tar", scratch / "report"
        with device.start('cd "$1" && exec tar cf - report', folder) as process, packed.open("wb") as stream:
            assert process.stdout is not None
            shutil.copyfileobj(process.stdout, stream)
            said = _all(process.stderr)
        device.whole(process.returncode, said)
        if process.returncode:
            return Step(name="fetch", state="failed", code=process.returncode, said="".join(said.splitlines()[-1:]))
        try:
            with tarfile.open(packed) as archive:
                unpack(archive, scratch)
        except tarfile.TarError as cause:
            raise InputError(
                f"what {device.to} sent is not a report: {cause}.\n"
                f"`ssh {device.to} true` has to say nothing: what it says stands before the report."
            ) from None
        before = scratch / "before"
        if report.exists():
            report.rename(before)
        try:
            unpacked.rename(report)
        except BaseException:
            if before.exists():
                before.rename(report)
            raise
    device.tell(f"fetch: {report}")
    return Step(name="fetch", state="done")
