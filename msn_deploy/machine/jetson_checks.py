"""Is this Jetson, and the container on it, set up as its JetPack has to be? The lines of `doctor` for Jetsons alone."""

from __future__ import annotations

import re
from pathlib import Path

from msn_deploy.machine.check import Check, problem, warning
from msn_deploy.machine.device import DeviceFacts
from msn_deploy.machine.libraries import same_release
from msn_deploy.machine.power_mode import read_clocks, read_power_mode
from msn_deploy.machine.probe import exists, names_in, read_text

BASE_IMAGE_FILE = "etc/msn-deploy/base-image"  # Dockerfile.jetson writes the name of its base there
# JetPack of each L4T, and the TensorRT that it brings: the newest L4T at or below the device's counts.
_STOCK = (
    ((32, 6), "4", "8"),
    ((34, 0), "5", "8"),
    ((35, 0), "5", "8.5"),
    ((36, 0), "6", "8.6"),
    ((36, 4), "6", "10.3"),
    ((38, 0), "7", "10.13"),
    ((39, 0), "7", "10.16"),
)
_KERNELS = {"4.9": "JetPack 4", "5.10": "JetPack 5", "5.15": "JetPack 6", "6.8": "JetPack 7"}
_MODEL_COPY = "/tmp/nv_jetson_model"  # no file below /proc can be mounted
_MOUNT_RELEASE = "-v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
_MOUNT_MODES = "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"
DOCKER_RUN = (
    f"tr -d '\\0' </proc/device-tree/model >{_MODEL_COPY}; docker run --rm --runtime nvidia --read-only --tmpfs /tmp "
    f'{_MOUNT_RELEASE} {_MOUNT_MODES} -v {_MODEL_COPY}:{_MODEL_COPY}:ro -v "$PWD":/data msn-deploy'
)


def jetson(root: Path, machine: DeviceFacts) -> Check:
    """Which board, L4T and JetPack, and whether the Python package supports it."""
    stock = _stock(machine.l4t)
    known = f" (JetPack {stock[0]})" if stock else ""
    found = f"{machine.jetson}, L4T {machine.l4t or 'unknown'}{known}"
    if machine.l4t is None:
        kernel = re.match(r"\d+\.\d+", read_text(root / "proc/sys/kernel/osrelease") or "")
        guess = _KERNELS.get(kernel[0]) if kernel else None
        found += f", by its kernel {guess}" if guess else ""
        hint = f"In a container add: {_MOUNT_RELEASE}" if machine.container else "cat /etc/nv_tegra_release"
        return warning("jetson", found, hint)
    if _numbers(machine.l4t)[0] < 36:
        hint = "JetPack before 6 has a Python older than 3.10: build there with trtexec, as a bundle's build.sh does."
        return warning("jetson", found, hint)
    return Check(name="jetson", verdict="ok", found=found)


def image(root: Path, machine: DeviceFacts, *, tensorrt: str | None) -> Check:
    """Whether the container fits the L4T of its host: by the base image it was built on, else by its TensorRT."""
    if not machine.container:
        return Check(name="image", verdict="ok", found="not in a container")
    base = (read_text(root / BASE_IMAGE_FILE) or "unknown")[:120]
    host, stock = machine.l4t, _stock(machine.l4t)
    found = f"base {base}, host L4T {host or 'unknown'}"
    if host is None or stock is None:
        return warning("image", found, f"Whether they fit can't be told; add: {_MOUNT_RELEASE}")
    rebuild = "Build the image with --build-arg BASE_IMAGE=... of the host's JetPack; Dockerfile.jetson lists them."
    tag = re.search(r"l4t-(?:jetpack|base):r(\d{1,3}(?:\.\d{1,3})*)", base)  # of l4t-tensorrt it is TensorRT's
    if tag and not _fits(tag[1], host):
        return problem("image", found, rebuild)
    if tag:
        return Check(name="image", verdict="ok", found=found)
    if tensorrt is None:
        return warning("image", f"{found}, no TensorRT in the image", f"Engines can't be built in it. {rebuild}")
    found += f", TensorRT {tensorrt}"
    if not same_release(tensorrt, stock[1]):
        return warning("image", f"{found} where JetPack {stock[0]} has {stock[1]}", rebuild)
    return Check(name="image", verdict="ok", found=found)


def runtime(root: Path, machine: DeviceFacts) -> Check:
    """Whether containers get the GPU: NVIDIA's runtime or a CDI description; in a container, whether this one did."""
    if machine.container:
        if machine.has_gpu:
            return Check(name="runtime", verdict="ok", found="this container has the GPU")
        return problem("runtime", "this container has no GPU", "Start it with: docker run --runtime nvidia ...")
    registered = "nvidia" in (read_text(root / "etc/docker/daemon.json") or "")
    folders = ("etc/cdi", "var/run/cdi", "run/cdi")
    described = any(
        "nvidia.com" in (read_text(root / at / name) or "") for at in folders for name in names_in(root / at)
    )
    ways = [name for name, there in (("nvidia", registered), ("CDI", described)) if there]
    if ways:
        supported = machine.l4t is None or _numbers(machine.l4t)[0] >= 36
        return Check(name="runtime", verdict="ok", found=" and ".join(ways), hint=DOCKER_RUN if supported else "")
    if exists(root / "usr/bin/nvidia-ctk"):
        hint = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
        return warning("runtime", "nvidia-container-toolkit, but Docker does not know of it", hint)
    hint = "Only containers need it: sudo apt install nvidia-container-toolkit"
    return warning("runtime", "no nvidia runtime, no CDI description", hint)


def power_mode(root: Path, machine: DeviceFacts) -> Check:
    """In which power mode it is: a latency without it means nothing."""
    mode = read_power_mode(root)
    among = f" (of {', '.join(mode.modes)})" if mode.modes else ""
    if mode.name is None:
        hint = f"In a container add: {_MOUNT_MODES}" if machine.container else "sudo nvpmodel -q"
        return warning("power mode", f"unknown{among}", hint)
    return Check(name="power mode", verdict="ok", found=f"{mode.name}{among}")


def clocks(root: Path) -> Check:
    """Whether the clocks stand still, as a measurement wants them."""
    ranges = read_clocks(root)
    if not ranges:
        return warning("clocks", "unknown", "On the device itself: sudo jetson_clocks --show")
    moving = [each for each in ranges if not each.pinned]
    if moving:
        first = moving[0]
        found = f"{first.name} moves between {first.lowest_mhz} and {first.highest_mhz} MHz"
        found += f", as {len(moving) - 1} other clocks do" if moving[1:] else ""
        return warning("clocks", found, "Before `bench`, on the device itself: sudo jetson_clocks")
    return Check(name="clocks", verdict="ok", found=f"pinned, {ranges[0].name} at {ranges[0].highest_mhz} MHz")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _stock(l4t: str | None) -> tuple[str, str] | None:
    """Return the JetPack of an L4T and the TensorRT that comes with it."""
    older = [row for row in _STOCK if l4t is not None and row[0] <= _numbers(l4t)]
    return older[-1][1:] if older else None


def _fits(image_l4t: str, host: str) -> bool:
    """Tell whether containers of one L4T run on another: within one release, but not across 36.4; 38 and 39 mix."""
    image, device = _numbers(image_l4t), _numbers(host)
    if image[0] == device[0] == 36:
        return (image >= (36, 4)) == (device >= (36, 4))
    return image[0] == device[0] or {image[0], device[0]} == {38, 39}
