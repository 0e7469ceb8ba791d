"""How does a container get a Jetson's GPU, and what of its host does it see? The home of each `docker run` line.

NVIDIA's runtime where Docker knows it. JetPack 7.2 no longer registers it (OE4T/tegra-demo-distro#391): there a CDI
description names the GPU, and `--gpus` takes that one, too, since moby/moby#50228.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import parse_json
from msn_deploy.machine.device import TREE_COPY
from msn_deploy.machine.files import exists, names_in, read_start, read_text

IMAGE = "msn-deploy"  # as Dockerfile.jetson says to name it
GPU_FLAGS = ("--runtime=nvidia", "--device=nvidia.com/gpu=all", "--gpus=all")
"""How Docker is asked for the GPU, in the order in which they are tried."""
COPIES = ("model", "compatible")
"""Files of /proc/device-tree of which a container finds copies (TREE_COPY): Docker masks them, none can be mounted."""
MOUNTED = ("/etc/nv_tegra_release", "/etc/nvpmodel.conf", "/var/lib/nvpmodel")
"""What else of the host tells L4T and power mode."""
SEALED = "--read-only --tmpfs /tmp"
"""The image writes nowhere but into its volumes and /tmp."""
CACHE = "msn-cache:/cache"
GPU_GROUP_FILES = ("/dev/nvmap", "/dev/nvgpu/igpu0/ctrl", "/dev/nvhost-gpu", "/dev/nvidia0")
"""Device files whose group may use the GPU; the number of the first that is there goes into the container."""
_CDI_FOLDERS = ("etc/cdi", "var/run/cdi", "run/cdi")
_DESCRIPTION = 4 << 20  # bytes: all mounts of a Tegra, and what it describes comes last (nvidia-ctk sorts the keys)


def gpu_flags(root: Path) -> dict[str, str]:
    """Return the flags that give a container the GPU on a machine, best first, by what makes Docker understand them."""
    daemon = _daemon(root)
    runtimes, features = daemon.get("runtimes"), daemon.get("features")
    registered = isinstance(runtimes, dict) and "nvidia" in runtimes
    refused = isinstance(features, dict) and features.get("cdi") is False
    described = not refused and any(
        re.search(rb"\bnvidia\.com/gpu\b", read_start(root / at / name, _DESCRIPTION) or b"")
        for at in _CDI_FOLDERS
        for name in names_in(root / at)
    )
    found = (("nvidia", registered, GPU_FLAGS[0]), ("CDI", described, GPU_FLAGS[1]))
    return {name: flag for name, there, flag in found if there}


def docker_run(root: Path | None = None, *, gpu: str = GPU_FLAGS[0]) -> str:
    """Return the line that runs the image on a Jetson; root: of the machine, where it is this one."""
    there = (name for name in GPU_GROUP_FILES if root is not None and exists(root / name.lstrip("/")))
    node = next(there, GPU_GROUP_FILES[0])
    mounts = " ".join(f"-v {name}:{name}:ro" for name in (*MOUNTED, *(f"{TREE_COPY}{name}" for name in COPIES)))
    return (
        f"for f in {' '.join(COPIES)}; do tr '\\0' '\\n' </proc/device-tree/$f >{TREE_COPY}$f; done; "
        f'docker run --rm {gpu} --group-add "$(stat -c %g {node})" {SEALED} {mounts} '
        f'-v {CACHE} -v "$PWD":/data {IMAGE}'
    )


def _daemon(root: Path) -> dict[str, Any]:
    """Return Docker's configuration; empty where there is none, or none that is one."""
    try:
        value = parse_json(read_text(root / "etc/docker/daemon.json") or "{}", source="daemon.json")
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}
