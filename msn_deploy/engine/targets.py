"""Which machines can run an engine, and what can each of them do?

Speeds are dense rates of the GPU alone at its highest clock (what a CNN engine can reach), never the marketing figure,
which counts sparsity and the DLAs. Memory is the nominal size of the module.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from msn_deploy.core.errors import InputError

_HALF = ("fp32", "fp16")
_ALL = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One machine, or one GPU generation, that an engine is built for.

    name: what the user types. compute_capability: such as "8.7". memory_gib: shared by CPU and GPU on a Jetson.
    bandwidth_gb_s: of that memory. fp16_tflops, int8_tops: dense, GPU alone. None: differs from card to card, or
    TensorRT has no such path. jetpacks, tensorrt: the releases that serve it, as text. jetson: a plan has to be built
    on the device. precisions: those TensorRT can build for it.
    """

    name: str
    title: str
    compute_capability: str
    memory_gib: float | None
    bandwidth_gb_s: float | None
    fp16_tflops: float | None
    int8_tops: float | None
    dla_cores: int
    jetpacks: str
    tensorrt: str
    jetson: bool
    precisions: tuple[str, ...]

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: "sm_87"."""
        return "sm_" + self.compute_capability.replace(".", "")

    @property
    def weakly_typed(self) -> bool:
        """Its only TensorRT is 8, which takes FP16 and INT8 from flags, beside a Python older than 3.10."""
        return self.jetson and {"4", "5"} >= set(self.jetpacks.split(", "))


def _jetson(
    name: str,
    title: str,
    cc: str,
    memory: tuple[float, float],
    speed: tuple[float, float | None],
    *,
    dla: int,
    jetpacks: str,
    tensorrt: str,
) -> Target:
    """One row of the table; memory = (GiB, GB/s), speed = (FP16 TFLOPS, INT8 TOPS)."""
    return Target(
        name=name,
        title=f"Jetson {title}",
        compute_capability=cc,
        memory_gib=memory[0],
        bandwidth_gb_s=memory[1],
        fp16_tflops=speed[0],
        int8_tops=speed[1],
        dla_cores=dla,
        jetpacks=jetpacks,
        tensorrt=tensorrt,
        jetson=True,
        precisions=_HALF if speed[1] is None else _ALL,
    )


def _rtx(cc: str, title: str) -> Target:
    """A GPU generation that TensorRT-RTX builds for ahead of time; sizes and speeds differ from card to card."""
    return Target(
        name="rtx-sm" + cc.replace(".", ""),
        title=title,
        compute_capability=cc,
        memory_gib=None,
        bandwidth_gb_s=None,
        fp16_tflops=None,
        int8_tops=None,
        dla_cores=0,
        jetpacks="",
        tensorrt="TensorRT-RTX",
        jetson=False,
        precisions=_ALL,
    )


_JP4 = {"jetpacks": "4", "tensorrt": "8.2.1"}
_JP45 = {"jetpacks": "4, 5", "tensorrt": "8.2.1 (JetPack 4.6), 8.5.2 (5.1)"}
_ORIN = {"jetpacks": "5, 6, 7.2+", "tensorrt": "8.5.2 (JetPack 5.1), 8.6.2 (6.0), 10.3.0 (6.1, 6.2), 10.16.2 (7.2)"}
_SUPER = {"jetpacks": "6.1+", "tensorrt": "10.3.0 (JetPack 6.1, 6.2), 10.16.2 (7.2)"}
_THOR = {"jetpacks": "7", "tensorrt": "10.13.3 (JetPack 7.0, 7.1), 10.16.2 (7.2)"}

# Orin rows: NVIDIA data sheets DS-11105-001, DS-10712-001 v1.7, DS-10662-001 v1.8, default (not "super") clocks.
# From memory, not checked: that TensorRT has no INT8 on Nano and TX2; the Xavier speeds. Derived: Thor T4000 speeds,
# Thor T5000 INT8 (taken as equal to its FP8 rate).
TARGETS: tuple[Target, ...] = (
    _jetson("nano", "Nano", "5.3", (4, 25.6), (0.47, None), dla=0, **_JP4),
    _jetson("tx2", "TX2", "6.2", (8, 59.7), (1.33, None), dla=0, **_JP4),
    _jetson("xavier-nx", "Xavier NX", "7.2", (8, 59.7), (6, 12), dla=2, **_JP45),  # a 16 GB module exists too
    _jetson("agx-xavier", "AGX Xavier", "7.2", (32, 136.5), (11, 22), dla=2, **_JP45),  # a 64 GB module exists too
    _jetson("orin-nano-4gb", "Orin Nano 4GB", "8.7", (4, 34), (5, 10), dla=0, **_ORIN),
    _jetson("orin-nano-8gb", "Orin Nano 8GB", "8.7", (8, 68), (10, 20), dla=0, **_ORIN),
    _jetson("orin-nano-super", "Orin Nano Super", "8.7", (8, 102), (16.7, 33), dla=0, **_SUPER),
    _jetson("orin-nx-8gb", "Orin NX 8GB", "8.7", (8, 102), (12.5, 25), dla=1, **_ORIN),
    _jetson("orin-nx-16gb", "Orin NX 16GB", "8.7", (16, 102), (15, 30), dla=2, **_ORIN),
    _jetson("agx-orin-32gb", "AGX Orin 32GB", "8.7", (32, 204.8), (27, 54), dla=2, **_ORIN),
    _jetson("agx-orin-64gb", "AGX Orin 64GB", "8.7", (64, 204.8), (42.6, 85), dla=2, **_ORIN),
    _jetson("thor-t4000", "Thor T4000", "11.0", (64, 273), (150, 300), dla=0, **_THOR),
    _jetson("thor-t5000", "Thor T5000", "11.0", (128, 273), (258.5, 517), dla=0, **_THOR),
    _rtx("7.5", "Turing GPUs (RTX 20); no FP32 matrix products"),
    _rtx("8.0", "Ampere data-centre GPUs (A100, A30)"),
    _rtx("8.6", "Ampere GPUs (RTX 30); nearest to Orin"),
    _rtx("8.9", "Ada GPUs (RTX 40)"),
    _rtx("12.0", "Blackwell GPUs (RTX 50)"),
    _rtx("12.1", "DGX Spark (GB10)"),
)

# A name without a memory size means the module of the developer kit, or the larger module where no kit decides.
ALIASES = {
    "orin-nano": "orin-nano-8gb",
    "orin-nx": "orin-nx-16gb",
    "agx-orin": "agx-orin-64gb",
    "thor": "thor-t5000",
}


def find_target(name: str) -> Target:
    """Return the target of that name or alias. Raises InputError with the nearest name for an unknown one."""
    wanted = name.strip().lower()
    wanted = ALIASES.get(wanted, wanted)
    for target in TARGETS:
        if target.name == wanted:
            return target
    near = difflib.get_close_matches(wanted, [*(target.name for target in TARGETS), *ALIASES], n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    raise InputError(f"there is no target {name!r}.{guess}\n`msn-deploy targets` lists them.")


def check_precision(target: Target, precision: str) -> None:
    """Raise InputError if TensorRT cannot build that precision for the target."""
    if precision not in target.precisions:
        raise InputError(
            f"{target.title} ({target.sm}) has no {precision.upper()} in TensorRT; "
            f"it has {' and '.join(each.upper() for each in target.precisions)}.\n"
            f"Build with `--precision {target.precisions[-1]}`, or for another `--target`."
        )
