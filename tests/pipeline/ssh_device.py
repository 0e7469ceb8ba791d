"""A stand-in for a device behind a real sshd on the loopback: a root of busybox, with stubs of JetPack's programs.

Commands run in a chroot, so that the bundle's scripts see a device's /proc, /etc and /usr without any seam of theirs.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bundle_devices import BOARD, device

# What JetPack's Python does for install.sh: knows its version and TensorRT, makes an environment, installs wheels.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-c import sys"*) exit 0 ;;
    "-c import "*) exit 0 ;;
    "-m venv") mkdir -p "$4/bin"; cp /usr/bin/python3 "$4/bin/python"; cp /usr/bin/msn-deploy "$4/bin/msn-deploy" ;;
esac
"""
MSN_DEPLOY = """#!/bin/sh
echo "$*" >>/root/calls
case $1 in --version) echo 99; exit 0 ;; esac
last=
for word; do
    case "$last $word" in
        --out\\ [!-]* | --json\\ [!-]* | --html\\ [!-]*) echo done >"$word.new"; mv "$word.new" "$word"
            case $* in *"--replicates 2"*) cp "$word" "${word%.engine}.r2.engine" ;; esac ;;
    esac
    last=$word
done
echo "$1: this line and the next"
echo "$1: are told"
"""
DF = """#!/bin/sh
set -- $(stat -f -c '%a %S' .)
echo "tmpfs 1 1 $(($1 * $2 / 1024)) 1% /"
"""
# Runs what the client asks for in the root; what lies in `next` says how this once goes wrong.
ENTER = """#!/bin/bash
case $SSH_ORIGINAL_COMMAND in
    *"$(cat {folder}/pattern 2>/dev/null || echo nothing)"*) how=$(cat {folder}/how); rm {folder}/pattern ;;
    *) how=run ;;
esac
enter() {{ exec {chroot} {root} /bin/busybox env -i HOME=/root PATH=/usr/bin:/bin sh -c "cd; $SSH_ORIGINAL_COMMAND"; }}
case $how in
    run) enter ;;
    cut-input) head -c 20000 | (enter); kill -9 $PPID ;;
    cut-output) (enter) | head -n 1; kill -9 $PPID ;;
    flip) tr '\\001' '\\002' | (enter) ;;
esac
"""


class SshDevice:
    """The device, and how a client reaches it."""

    def __init__(self, folder: Path, root: Path, ssh: Sequence[str]) -> None:
        self.folder, self.root, self.ssh = folder, root, ssh
        self.home = root / "root"

    def next(self, pattern: str, how: str) -> None:
        """Let the next command that holds `pattern` go wrong: "cut-input", "cut-output", "flip"."""
        (self.folder / "how").write_text(how)
        (self.folder / "pattern").write_text(pattern)

    def calls(self) -> list[str]:
        """Return the first words that msn-deploy was called with there."""
        path = self.home / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def ssh_device(folder: Path) -> Iterator[SshDevice]:
    """Start the sshd, end it. Raises RuntimeError with a reason where that is not possible."""
    path = f"{os.environ['PATH']}:/usr/sbin"  # which is not in everyone's
    programs = {name: shutil.which(name, path=path) for name in ("sshd", "ssh", "busybox", "chroot")}
    if None in programs.values() or os.geteuid() != 0:
        raise RuntimeError("needs root, OpenSSH's server and client, and busybox")
    root = _root(folder / "root", Path(programs["busybox"]), programs["chroot"])
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=60)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    enter = folder / "enter"
    enter.write_text(ENTER.format(folder=folder, root=root, chroot=programs["chroot"]))
    enter.chmod(0o755)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nPidFile none\nForceCommand {enter}\nPermitRootLogin prohibit-password\nUsePAM no\n"
    )
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "ssh_config").write_text(
        f"Host orin\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n LogLevel ERROR\n BatchMode yes\n"
        f" ControlMaster auto\n ControlPath {folder}/%C\n ControlPersist 1m\n"  # as many users have it
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "sshd.log").open("wb")
    server = subprocess.Popen([programs["sshd"], "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        while f"listening on 127.0.0.1 port {port}" not in (folder / "sshd.log").read_text():
            if server.poll() is not None:
                raise RuntimeError((folder / "sshd.log").read_text())
        yield SshDevice(folder, root, (programs["ssh"], "-F", str(folder / "ssh_config")))
    finally:
        server.terminate()
        server.wait()
        log.close()


def _root(root: Path, busybox: Path, chroot: str) -> Path:
    device(root, model=BOARD)
    for name in ("bin", "root", "tmp", "dev", "proc/sys/kernel/random", "usr/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, root / "bin/busybox")
    needed = subprocess.run(["ldd", busybox], capture_output=True, text=True).stdout  # none if it is a static one
    for library in re.findall(r"(/\S+\.so\S*)", needed):
        (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library.lstrip("/"))
    subprocess.run([chroot, root, "/bin/busybox", "--install", "-s", "/bin"], check=True, timeout=60)
    os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    (root / "proc/sys/kernel/random/boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    (root / "bin/df").unlink()  # busybox's asks /proc/mounts
    for name, text in (("usr/bin/python3", PYTHON), ("usr/bin/msn-deploy", MSN_DEPLOY), ("bin/df", DF)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    return root
