"""Faked file systems of the machines that `doctor` meets, and the page of docs/ that shows what it says of each.

After a change: PYTHONPATH=. python tests/machine/doctor_machines.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from msn_deploy.engine import Check
from msn_deploy.machine.checks import Host, checks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "doctor.md"
GIB = 2**30
ARM, X86 = "usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu"
PACKAGES = {"onnxruntime": "1.23.2", "onnx": "1.23.2", "pycuda": "2026.1"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """files: path to text, or to the size of a library. links: path to where it leads. nodes: device file to the number
    of its group, its owner is root, and its mode. uid, groups: of the user who asks."""

    title: str
    files: dict[str, str | int]
    installed: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)
    uid: int = 1000
    groups: tuple[int, ...] = (44,)
    arch: str = "aarch64"
    python: str = "3.10.12, /usr/bin/python3"
    free_gib: float = 40.0

    def build(self, root: Path) -> Host:
        """Write the files below a root and return what looks at them."""
        for name, content in {**self.files, **dict.fromkeys(self.nodes, "")}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                with path.open("wb") as stream:
                    stream.write(b"\x7fELF"[:content])
                    stream.truncate(content)  # sparse: no bytes on the disk
            else:
                path.write_text(content)
        for name, target in self.links.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)
        return self.host(root)

    def host(self, root: Path) -> Host:
        """Return what looks at the files that `build` wrote."""
        nodes = {root / name: its for name, its in self.nodes.items()}

        def may_open(path: Path) -> bool:
            gid, mode = nodes.get(path, (0, 0o755))  # what is no device file here is a folder or a file of root's
            return self.uid == 0 or ((mode >> 3 if gid in self.groups else mode) & 6) == 6

        def group_of(path: Path) -> int | None:
            gid, mode = nodes[path]
            return gid if gid and mode & 0o060 == 0o060 else None

        return Host(
            root=root,
            arch=self.arch,
            python=self.python,
            installed=self.installed.get,
            may_open=may_open,
            group_of=group_of,
            free_bytes=lambda folder: int(self.free_gib * GIB),
        )


# The numbers of groups are those of Ubuntu and, for render, of one Jetson and one workstation; they differ.
VIDEO, RENDER = 44, 104
GROUPS = {"etc/group": f"root:x:0:\nvideo:x:{VIDEO}:\nrender:x:{RENDER}:\nuser:x:1000:\n"}


def _nodes(gid: int, mode: int, *names: str) -> dict[str, tuple[int, int]]:
    return {f"dev/{name}": (gid, mode) for name in names}


# Device files as public dumps show them: nvgpu and nvmap in the lists that others hand to containers (of Incus and of
# Frigate), with the group of NVIDIA's 99-tegra-devices.rules (0660 root:video); /dev/nvgpu holds a folder per GPU,
# see nvgpu's own description of its nodes. Desktop and Thor: what nvidia-modprobe makes, for all.
_NVHOST = _nodes(
    VIDEO, 0o660, "nvhost-ctrl", "nvhost-ctrl-gpu", "nvhost-gpu", "nvhost-as-gpu", "nvhost-tsg-gpu", "nvmap"
)
_IGPU = ("as", "channel", "ctrl", "power", "sched", "tsg")
_NVGPU = _nodes(VIDEO, 0o660, *(f"nvgpu/igpu0/{name}" for name in _IGPU))
_NVGPU |= _nodes(0, 0o600, *(f"nvgpu/igpu0/{name}" for name in ("ctxsw", "dbg", "nvsched", "prof", "prof-dev")))
_DRI = _nodes(RENDER, 0o660, "dri/renderD128") | _nodes(VIDEO, 0o660, "dri/card0")
NODES = {
    4: _NVHOST,
    5: _NVHOST | _NVGPU | _DRI,
    6: _NVHOST | _NVGPU | _DRI,
    7: _nodes(VIDEO, 0o660, "nvmap") | _NVGPU | _DRI,
}
DESKTOP = _nodes(0, 0o666, "nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
THOR = DESKTOP | _nodes(VIDEO, 0o660, "nvmap") | _DRI


def memory(total_gib: float, free_gib: float) -> dict[str, str]:
    """Return what the kernel says of the memory."""
    lines = (("MemTotal", total_gib), ("MemAvailable", free_gib))
    return {"proc/meminfo": "".join(f"{key}:  {int(gib * 2**20)} kB\n" for key, gib in lines)}


def jetson(model: str, release: str, kernel: str, *, cuda: str, tensorrt: str, total: float, free: float) -> dict:
    """Return the files of a flashed Jetson."""
    major, _, minor = release.partition(".")
    soname = tensorrt.partition(".")[0]
    names = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
    sizes = dict(zip(names, (220_000_000, 40_000_000, 3_000_000), strict=True))
    return {
        "proc/device-tree/model": model + "\0",
        "proc/sys/kernel/osrelease": kernel + "\n",
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {minor}, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "usr/local/cuda-x/version.json": f'{{"cuda": {{"version": "{cuda}"}}}}',
        "usr/local/cuda-x/bin/nvcc": 9000,
        **{f"{ARM}/{name}.so.{tensorrt}": size for name, size in sizes.items()},
        f"{ARM}/{names[0]}.so.{soname}": 220_000_000,
        f"{ARM}/nvidia/libcuda.so.1.1": 30_000_000,
        **GROUPS,
        "usr/bin/nvidia-ctk": "",
        "etc/docker/daemon.json": '{"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}',
        **memory(total, free),
    }


def power(set_to: int, *modes: str) -> dict[str, str]:
    """Return nvpmodel's files."""
    conf = "".join(f"< POWER_MODEL ID={at} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for at, name in enumerate(modes))
    return {"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": f"pmode:{set_to:04d}\n"}


def clocks(lowest_mhz: int, highest_mhz: int) -> dict[str, str]:
    """Return the clock ranges of the GPU and of one core, the core pinned."""
    gpu, core = "sys/class/devfreq/17000000.gpu", "sys/devices/system/cpu/cpu0/cpufreq"
    return {
        f"{gpu}/min_freq": f"{lowest_mhz}000000\n",
        f"{gpu}/max_freq": f"{highest_mhz}000000\n",
        f"{core}/scaling_min_freq": "1510400\n",
        f"{core}/scaling_max_freq": "1510400\n",
    }


def container(files: dict, *, base: str, without: tuple[str, ...] = ()) -> dict:
    """Return the files of a container on a Jetson: no Docker in it; without: what was not mounted."""
    gone = ("usr/bin/nvidia-ctk", "etc/docker", *without)
    kept = {name: content for name, content in files.items() if not name.startswith(gone)}
    return {**kept, ".dockerenv": "", "etc/msn-deploy/base-image": base + "\n"}


_ORIN = "NVIDIA Jetson Orin Nano Developer Kit"
_NANO_62 = jetson(_ORIN, "36.4.3", "5.15.148-tegra", cuda="12.6.68", tensorrt="10.3.0", total=7.4, free=5.1)
_NX_60 = jetson(
    "NVIDIA Orin NX Developer Kit", "36.3.0", "5.15.136-tegra", cuda="12.2.140", tensorrt="8.6.2", total=15.3, free=12.0
)
_AGX_JP5 = jetson(
    "NVIDIA Jetson AGX Orin Developer Kit", "35.4.1", "5.10.120-tegra", cuda="11.4.315", tensorrt="8.5.2", total=61.4,
    free=55.0,
)  # fmt: skip
_THOR = jetson(
    "NVIDIA Jetson AGX Thor Developer Kit", "38.2.0", "6.8.12-tegra", cuda="13.0.48", tensorrt="10.13.3", total=122.8,
    free=110.0,
)  # fmt: skip
_ORIN_72 = jetson(_ORIN, "39.2.0", "6.8.12-tegra", cuda="13.2.1", tensorrt="10.16.2", total=7.4, free=1.2)
_ORIN_72[f"{ARM}/libnvinfer_builder_resource_sm86.so.10.16.2"] = 900_000_000
_MODES = power(0, "15W", "7W")
_GPU = {f"{X86}/libcuda.so.1": 90_000_000}
_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC version:  gcc version 13\n"
_WORKSTATION = {**PACKAGES, "torch": "2.13.0", "tensorrt_rtx": "1.7.1.116"}
del _WORKSTATION["pycuda"]

MACHINES: dict[str, Machine] = {
    "jetpack6": Machine(
        title="Orin Nano, JetPack 6.2, on the device itself",
        nodes=NODES[6],
        files=_NANO_62 | _MODES | clocks(306, 625),
        installed=PACKAGES | {"tensorrt": "10.3.0"},
    ),
    "jetpack6-container": Machine(
        title="The same, in a container started as the line above says, clocks pinned",
        nodes=NODES[6],
        files=container(_NANO_62, base="nvcr.io/nvidia/l4t-jetpack:r36.4.0") | _MODES | clocks(625, 625),
        installed=PACKAGES | {"tensorrt": "10.3.0"},
        python="3.10.12, /opt/msn-deploy/bin/python3",
    ),
    "jetpack6-bare-container": Machine(
        title="The same, in a container without `--runtime=nvidia` and without mounts",
        files=container(
            _NANO_62,
            base="nvcr.io/nvidia/l4t-jetpack:r36.4.0",
            without=("etc/nv_tegra_release", f"{ARM}/nvidia"),
        ),
        installed=PACKAGES | {"tensorrt": "10.3.0"},
        python="3.10.12, /opt/msn-deploy/bin/python3",
    ),
    "jetpack6-second-tensorrt": Machine(
        title="Orin Nano, JetPack 6.2, where pip has brought a second TensorRT, the user is in no group, the disk full",
        nodes=NODES[6],
        groups=(),
        files=_NANO_62 | _MODES | clocks(306, 625) | {"etc/docker/daemon.json": "{}"},
        installed={"onnxruntime": "1.23.2", "tensorrt": "10.13.0", "tensorrt_libs": "10.13.0"},
        free_gib=0.3,
    ),
    "jetpack60-other-image": Machine(
        title="Orin NX, JetPack 6.0, in a container built for JetPack 6.2",
        nodes=NODES[6],
        files=container(
            _NX_60 | {f"{ARM}/libnvinfer.so.10.3.0": 220_000_000}, base="nvcr.io/nvidia/l4t-jetpack:r36.4.0"
        ),
        installed=PACKAGES | {"tensorrt": "10.3.0"},
    ),
    "jetpack5": Machine(
        title="AGX Orin, JetPack 5.1, with a Python 3.10 of the user's own",
        nodes=NODES[5],
        files=_AGX_JP5 | power(2, "MAXN", "15W", "30W", "50W") | clocks(306, 1300),
        installed={"onnxruntime": "1.23.2", "onnx": "1.23.2"},
        python="3.10.14, /opt/python3.10/bin/python3",
    ),
    "jetpack5-short-files": Machine(
        title="AGX Orin, JetPack 5.1, in an image made for JetPack 4, where the runtime mounted the libraries",
        nodes=NODES[5],
        files=container(_AGX_JP5, base="nvcr.io/nvidia/l4t-base:r32.7.1", without=(ARM,))
        | {f"{ARM}/libnvinfer.so.8.2.1": 0, f"{ARM}/libnvonnxparser.so.8.2.1": 0, f"{ARM}/libcuda.so.1": 30_000_000},
        links={f"{ARM}/libnvinfer.so.8": "libnvinfer.so.8.2.3"},
        installed={"onnxruntime": "1.23.2", "onnx": "1.23.2", "tensorrt": "8.2.1"},
    ),
    "jetpack4": Machine(
        title="Nano, JetPack 4.6, with a Python 3.10 of the user's own",
        nodes=NODES[4],
        files=jetson(
            "NVIDIA Jetson Nano Developer Kit",
            "32.7.1",
            "4.9.253-tegra",
            cuda="10.2.300",
            tensorrt="8.2.1",
            total=3.9,
            free=0.4,
        )
        | power(0, "MAXN", "5W")
        | clocks(76, 921),
        python="3.10.14, /opt/python3.10/bin/python3",
    ),
    "jetpack7-thor": Machine(
        title="AGX Thor, JetPack 7.0, on the device itself, described by CDI",
        nodes=THOR,
        files={name: text for name, text in _THOR.items() if not name.startswith("etc/docker")}
        | _GPU
        | {"etc/cdi/nvidia.yaml": "kind: nvidia.com/gpu\n", "proc/driver/nvidia/version": _DRIVER}
        | power(0, "MAXN", "120W"),
        installed=PACKAGES | {"tensorrt": "10.13.3.9"},
        python="3.12.3, /usr/bin/python3",
    ),
    "jetpack7-orin": Machine(
        title="Orin Nano, JetPack 7.2, in an image of an older TensorRT, little memory free",
        nodes=NODES[7],
        files=container(
            {name.replace("10.16.2", "10.13.3"): content for name, content in _ORIN_72.items()},
            base="nvcr.io/nvidia/tensorrt:25.08-py3",
        )
        | _MODES
        | clocks(612, 612),
        installed=PACKAGES | {"tensorrt": "10.13.3.9"},
        python="3.12.3, /opt/msn-deploy/bin/python3",
    ),
    "workstation-gpu": Machine(
        title="Workstation with an NVIDIA GPU",
        nodes=DESKTOP,
        files=_GPU | memory(31.2, 20.0) | {"proc/driver/nvidia/version": _DRIVER},
        installed=_WORKSTATION | {"pycuda": "2026.1"},
        arch="x86_64",
        python="3.11.9, .venv/bin/python",
    ),
    "workstation-other-gpu": Machine(
        title="Workstation with the GPU of another maker, over SSH",
        nodes=_DRI,
        groups=(),
        files=GROUPS | memory(31.2, 20.0),
        installed=_WORKSTATION,
        arch="x86_64",
        python="3.11.9, .venv/bin/python",
    ),
    "workstation": Machine(
        title="Workstation without a GPU, nothing installed but the package itself",
        files=memory(15.5, 9.0),
        arch="x86_64",
        python="3.11.9, .venv/bin/python",
    ),
    "wsl": Machine(
        title="Windows Subsystem for Linux",
        nodes=_nodes(0, 0o666, "dxg"),
        files={"usr/lib/wsl/lib/libcuda.so.1": 200_000} | memory(15.5, 12.0),
        installed=_WORKSTATION,
        arch="x86_64",
        python="3.12.3, .venv/bin/python",
    ),
    "container": Machine(
        title="arm64 container on a machine that is not a Jetson (what `make container-test` runs)",
        files=memory(23.4, 20.0) | {"run/.containerenv": "", "etc/msn-deploy/base-image": "debian"},
        installed={"onnxruntime": "1.23.2", "onnx": "1.23.2"},
        python="3.11.2, /opt/msn-deploy/bin/python3",
    ),
    "raspberry": Machine(
        title="Another arm64 board",
        files=memory(7.9, 6.0) | {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
        installed={"onnxruntime": "1.23.2", "onnx": "1.23.2"},
    ),
    "empty": Machine(title="A root without any file", files={}, python="3.10.12, /usr/bin/python3"),
}


def judged(name: str, folder: Path) -> list[Check]:
    """Return what `doctor` says of a machine, its files written below a folder."""
    return checks(MACHINES[name].build(folder))


def page(folder_for: Callable[[str], Path]) -> str:
    """Return docs/reference/doctor.md; folder_for: an empty folder for each machine."""
    parts = [
        "# What `msn-deploy doctor` says\n\n"
        "Of each machine that the tests fake (`tests/machine/doctor_machines.py` writes this page, a test keeps it). "
        "Exit 0 with warnings only, 3 with a problem. `--json` gives the same lines; `doctor MODEL.onnx` counts that "
        "model in what a build may take.\n"
    ]
    for name, machine in MACHINES.items():
        lines = judged(name, folder_for(name))
        code = 3 if any(line.verdict == "problem" for line in lines) else 0
        parts.append(f"\n## {machine.title}\n\nExit {code}.\n\n")
        parts.append("| verdict | what | found | what to type |\n|---|---|---|---|\n")
        cells = ((line.verdict, line.name, line.found, line.hint) for line in lines)
        parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in cells]
    return "".join(parts)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(lambda name: Path(scratch, name)))
    sys.stdout.write(f"{PAGE}\n")
