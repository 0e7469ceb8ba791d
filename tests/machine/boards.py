"""Faked roots of boards and workstations, and docs/reference/boards.md: what doctor, bench and bundle make of each.

As root and as two users, on the machine itself and in a container that was started as `doctor` says. After a change:
PYTHONPATH=.:tests python tests/machine/boards.py
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from doctor_machines import (
    DESKTOP,
    GROUPS,
    NODES,
    PACKAGES,
    RENDER,
    THOR,
    VIDEO,
    X86,
    Machine,
    container,
    jetson,
    memory,
    power,
)
from fake_sysfs import GPU, HEAT, MHZ, MODELS, OFFLINE, FakeHeat, FakeJetson

from msn_deploy.bench.validity import Validity, block_causes
from msn_deploy.core.errors import MissingDevice
from msn_deploy.engine.device_script import LIBRARY, library_text
from msn_deploy.machine.checks import checks
from msn_deploy.machine.containers import COPIES
from msn_deploy.machine.device import module_of, what_machine
from msn_deploy.machine.jetpacks import jetpack_of
from msn_deploy.machine.state import Probe, find_sensor, pinned_mhz
from msn_deploy.machine.targets import TARGETS
from msn_deploy.pipeline import bundle

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "boards.md"
USERS = {"root": (0, ()), "a user of the group": (1000, (VIDEO,)), "a user of no group": (1000, ())}
# Where the chip itself slows down: zone and degrees Celsius. On the others a clock falls.
_TOO_HOT = {"nano": ("CPU-therm", 98), "orin-nano": ("cpu-thermal", 99.5), "agx-orin": ("gpu-thermal", 99.5)}
_TOO_HOT |= {"thor": ("gpu-thermal", 109.5), "laptop": ("acpitz", 85)}


@dataclass(frozen=True, kw_only=True)
class Board:
    """A machine. kind: of fake_sysfs.py. compatible: of its device tree. base: of the image that fits it."""

    title: str
    machine: Machine
    kind: str = ""
    compatible: str = ""
    base: str = "debian:12"
    family: tuple[str, ...] = ()
    """The targets whose bundles it takes."""

    def build(self, root: Path, *, inside: bool = False) -> Running:
        """Write its files below a root. inside: in a container, as the printed line starts it."""
        board: FakeJetson | FakeHeat | None = None
        if self.kind in MODELS:
            board = FakeJetson(root, self.kind, gpu=GPU[self.kind] if inside else "")
        elif self.kind in HEAT:
            board = FakeHeat(root, self.kind)
        files = dict(self.machine.files)
        if self.compatible:
            files["proc/device-tree/compatible"] = "".join(f"{each}\0" for each in self.compatible.split())
        if inside:  # Docker masks the folder, and the line mounts copies
            tree = {name: str(files.pop(f"proc/device-tree/{name}", "")) for name in COPIES}
            copies = {f"tmp/nv_jetson_{name}": text.replace("\0", "\n") for name, text in tree.items() if text}
            mounts = "".join(f"1 1 8:1 / /{name} ro - ext4 /dev/sda1 rw\n" for name in copies)
            files = container(files, base=self.base) | copies | {"proc/self/mountinfo": mounts}
            shutil.rmtree(root / "proc/device-tree", ignore_errors=True)
        machine = replace(self.machine, files=files)
        machine.build(root)
        return Running(root=root, kind=self.kind, board=board, machine=machine)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A machine that was built."""

    root: Path
    kind: str
    board: FakeJetson | FakeHeat | None
    machine: Machine

    def doctor(self, user: str) -> dict[str, list[str]]:
        """Return the names of the lines that are a "problem" or a "warning"."""
        uid, groups = USERS[user]
        found = checks(replace(self.machine, uid=uid, groups=groups).host(self.root))
        return {kind: [each.name for each in found if each.verdict == kind] for kind in ("problem", "warning")}

    def bench_at(self, condition: str) -> Validity:
        """Whether `bench` may report ten blocks, the last five of which ran "warm", at 75 degrees, or "throttled".

        It stays as it was.
        """
        probe = Probe(self.root)
        readings = [probe() for _ in range(6)]
        heat = self.board.heat if isinstance(self.board, FakeJetson) else self.board
        if condition == "warm" and heat is not None:
            for zone in heat.zones:
                if zone != OFFLINE:
                    heat.set_celsius(zone, 75)
            for notice in {"hot-surface-alert", "tegra-dram", "pwm-fan"} & set(heat.devices):
                heat.set_state(notice, 1)
        elif self.kind in _TOO_HOT and heat is not None:
            heat.set_celsius(*_TOO_HOT[self.kind])
        elif isinstance(self.board, FakeJetson):
            self.board.set_gpu(306 * MHZ)
        readings += [probe() for _ in range(5)]
        causes = [each for each in block_causes(readings, pinned_mhz=pinned_mhz(self.root)) if each is not None]
        return Validity(blocks=10, dirty_blocks=len(causes), causes={each: causes.count(each) for each in causes})

    def rail(self) -> str:
        """Name the rails whose power `bench --energy` adds up; "" where there is none."""
        try:
            return find_sensor(self.root).rail
        except MissingDevice:
            return ""

    def module(self) -> str | None:
        return module_of(what_machine(self.root))


def accepted(root: Path, scratch: Path) -> tuple[str, ...]:
    """Return the targets whose bundles build on a machine, as the scripts of a bundle decide it."""
    scratch.mkdir(parents=True, exist_ok=True)
    common = (resources.files("msn_deploy.pipeline") / "bundle_scripts" / "common.sh").read_text()
    assert common.count("root=''") == 1
    (scratch / "common.sh").write_text(common.replace("root=''", f"root={shlex.quote(str(root))}"))
    (scratch / LIBRARY).write_text(library_text())
    (scratch / "verify").write_text("#!/bin/sh\n")  # nothing was installed or built here
    (scratch / "verify").chmod(0o755)
    jetsons = [each for each in TARGETS if each.jetson]
    for target in jetsons:
        for name in (f"{target.name}.env", "bundle.env"):
            (scratch / name).write_text(bundle._environment(target, "", "", ()))
    (scratch / "accepted.sh").write_text(
        'here=$(dirname -- "$0")\n. "$here/common.sh"\n'
        'for each in "$here"/*-*.env "$here"/nano.env "$here"/tx2.env; do\n'
        '    . "$each"\n    if (check_device) >/dev/null 2>&1; then say "$TARGET"; fi\ndone\n'
    )
    done = subprocess.run(["sh", str(scratch / "accepted.sh")], capture_output=True, text=True, check=True, timeout=120)
    return tuple(each.name for each in jetsons if each.name in done.stdout.split())


def _board(
    title: str,
    model: str,
    l4t: str,
    *,
    kind: str,
    compatible: str,
    gib: float,
    family: str,
    base: str,
    nodes: dict[str, tuple[int, int]] | None = None,
    more: dict[str, str | int] | None = None,
) -> Board:
    jetpack = jetpack_of(l4t)
    assert jetpack is not None
    files = jetson(
        model, l4t, f"{jetpack.kernel}.1-tegra", cuda="12.6", tensorrt=jetpack.tensorrt, total=gib, free=gib - 1
    )
    installed = PACKAGES | ({"tensorrt": jetpack.tensorrt} if jetpack.runs_package else {})
    modes = power(2, "MAXN", "15W", "30W")
    python = f"{jetpack.python}.1, /usr/bin/python3" if jetpack.runs_package else "3.10.14, /opt/python3.10/bin/python3"
    machine = Machine(
        title=title,
        files=files | modes | (more or {}),
        nodes=nodes or NODES[int(jetpack.major)],
        installed=installed,
        python=python,
    )
    names = tuple(family.split())
    return Board(title=title, machine=machine, kind=kind, compatible=compatible, base=base, family=names)


def _desk(title: str, *, nodes: dict[str, tuple[int, int]], kind: str = "", more: dict | None = None) -> Board:
    installed = {"onnxruntime": "1.23.2", "onnx": "1.23.2", "torch": "2.13.0", "tensorrt_rtx": "1.7.1.116"}
    machine = Machine(
        title=title,
        files=GROUPS | memory(31.2, 20.0) | (more or {}),
        nodes=nodes,
        installed=installed,
        arch="x86_64",
        python="3.11.9, .venv/bin/python",
    )
    return Board(title=title, machine=machine, kind=kind)


_CDI = {"etc/docker/daemon.json": "{}", "etc/cdi/nvidia.yaml": "kind: nvidia.com/gpu\n"}
_DRIVER = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n",
    f"{X86}/libcuda.so.1": 90_000_000,
}
_JETPACK = "nvcr.io/nvidia/l4t-jetpack:"
_TENSORRT = "nvcr.io/nvidia/tensorrt:25.08-py3"
_AGX = "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234"
_AGX_TEXT = "NVIDIA Jetson AGX Orin Developer Kit"
_AGX_FAMILY = "agx-orin-32gb agx-orin-64gb"
# The strings of test_machine_device.py, whose sources are named there.
BOARDS: tuple[Board, ...] = (
    _board(
        "Nano, JetPack 4.6", "NVIDIA Jetson Nano Developer Kit", "32.7.1", kind="nano", gib=3.9, family="nano",
        compatible="nvidia,p3449-0000-b00+p3448-0000-b00 nvidia,jetson-nano nvidia,tegra210",
        base="nvcr.io/nvidia/l4t-base:r32.7.1",
    ),
    _board(
        "Xavier NX, JetPack 5.1", "NVIDIA Jetson Xavier NX Developer Kit", "35.4.1", kind="xavier-nx", gib=6.7,
        compatible="nvidia,p3509-0000+p3668-0000 nvidia,p3668-0000 nvidia,tegra194", family="xavier-nx",
        base=f"{_JETPACK}r35.4.1",
    ),
    _board(
        "AGX Xavier, JetPack 5.1", "Jetson-AGX", "35.4.1", kind="agx-xavier", gib=31.2, family="agx-xavier",
        compatible="nvidia,galen nvidia,jetson-xavier nvidia,p2822-0000+p2888-0001 nvidia,tegra194",
        base=f"{_JETPACK}r35.4.1",
    ),
    _board(
        "Orin Nano, JetPack 6.2", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3",
        kind="orin-nano", compatible="nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234", gib=7.4,
        family="orin-nano-4gb orin-nano-8gb orin-nano-super", base=f"{_JETPACK}r36.4.0",
    ),
    _board(
        "Orin NX on a carrier of another maker, JetPack 6.0", "NX150_2024-12-23", "36.3.0", kind="orin-nano", gib=15.3,
        compatible="acme,nx150 nvidia,p3767-0000 nvidia,tegra234", family="orin-nx-8gb orin-nx-16gb",
        base=f"{_JETPACK}r36.2.0",
    ),
    _board(
        "AGX Orin, JetPack 6.0", _AGX_TEXT, "36.3.0", kind="agx-orin", compatible=_AGX, gib=61.4, family=_AGX_FAMILY,
        base=f"{_JETPACK}r36.2.0",
    ),
    _board(
        "AGX Orin, JetPack 6.2", _AGX_TEXT, "36.4.3", kind="agx-orin", compatible=_AGX, gib=61.4, family=_AGX_FAMILY,
        base=f"{_JETPACK}r36.4.0",
    ),
    _board(
        "AGX Orin, JetPack 7.2", _AGX_TEXT, "39.2.0", kind="agx-orin", compatible=_AGX, gib=61.4, family=_AGX_FAMILY,
        base=_TENSORRT, more=_CDI,
    ),
    _board(
        "Thor T5000, JetPack 7.1", "NVIDIA Jetson AGX Thor Developer Kit", "38.4.0", kind="thor", gib=122.8,
        compatible="nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264", family="thor-t4000 thor-t5000",
        base=_TENSORRT, nodes=THOR, more=_CDI,
    ),
    _board(
        "Thor T4000, JetPack 7.1", "acme thor carrier", "38.4.0", kind="thor", gib=61.2,
        compatible="nvidia,p4071-0000+p3834-0000 nvidia,p3834-0000 nvidia,tegra264", family="thor-t4000 thor-t5000",
        base=_TENSORRT, nodes=THOR, more=_CDI,
    ),
    _desk("Workstation with an NVIDIA GPU", nodes=DESKTOP, more=_DRIVER),
    _desk(
        "Laptop with a GPU of another maker", kind="laptop",
        nodes={"dev/dri/renderD128": (RENDER, 0o660), "dev/dri/card0": (VIDEO, 0o660)},
    ),
    _desk("Server without a GPU", nodes={}),
)  # fmt: skip


def _verdict(said: dict[str, list[str]]) -> str:
    lines = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in said.items() if names)
    return f"exit {3 if said['problem'] else 0}" + (f" ({lines})" if lines else "")


def _validity(validity: Validity) -> str:
    return "valid" if validity.valid else f"invalid: {next(iter(validity.causes))}"


_HEAD = """\
# What each board gets

Of each machine whose files the tests fake (`tests/machine/boards.py` writes this page, a test keeps it): what `doctor`
says to root and to two users, whether `bench` reports a run in which the board was at 75 °C and one in which it was
throttled, which rails `bench --energy` adds up, and the targets whose bundles it takes. None of this has run on the
device itself.

JetPack 4 and 5 have a Python older than 3.10. `doctor` runs there with a Python of the user's own, which JetPack's
TensorRT does not know, and the scripts of a bundle drive `trtexec`.
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What all of that came to on one machine. doctor: by user. throttled: None where nothing tells it."""

    module: str | None
    doctor: dict[str, dict[str, list[str]]]
    warm: Validity
    throttled: Validity | None
    rail: str
    bundles: tuple[str, ...]


def look_at(board: Board, folder: Path, *, inside: bool) -> Look:
    """Look at a machine whose files are written below a folder."""
    running = board.build(folder / "root", inside=inside)
    warm = board.build(folder / "warm", inside=inside)
    return Look(
        module=running.module(),
        doctor={user: running.doctor(user) for user in USERS},
        warm=warm.bench_at("warm"),
        throttled=running.bench_at("throttled") if board.kind else None,
        rail=running.rail(),
        bundles=accepted(running.root, folder / "sh"),
    )


def page(looks: dict[tuple[str, bool], Look]) -> str:
    """Return docs/reference/boards.md. looks: by title, outside and inside of a container."""
    parts = [_HEAD]
    for board in BOARDS:
        out, ins = (_column(looks[board.title, inside]) for inside in (False, True))
        parts.append(f"\n## {board.title}\n\n| | on the machine | in a container |\n|---|---|---|\n")
        parts += [f"| {row} | {out[row]} | {ins[row]} |\n" for row in out]
    return "".join(parts)


def _column(look: Look) -> dict[str, str]:
    return {
        "known as": look.module or "not a Jetson",
        **{f"`doctor`, {user}": _verdict(said) for user, said in look.doctor.items()},
        "`bench`, 75 °C": _validity(look.warm),
        "`bench`, throttled": _validity(look.throttled) if look.throttled else "no thermal zone",
        "`bench --energy`": look.rail or "refused: no sensor",
        "`bundle` for": ", ".join(look.bundles) or "refused",
    }


def look_at_all(folder: Path) -> dict[tuple[str, bool], Look]:
    """Look at every machine."""
    return {
        (board.title, inside): look_at(board, folder / f"{at}-{inside}", inside=inside)
        for at, board in enumerate(BOARDS)
        for inside in (False, True)
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(look_at_all(Path(scratch))))
    sys.stdout.write(f"{PAGE}\n")
