"""Which machines can run an engine, and what can each of them do?

Speeds are dense rates of the GPU alone at its highest clock (what a CNN engine can reach), never the marketing figure,
which counts sparsity and the DLAs. Memory is the nominal size of the module.
"""

from __future__ import annotations

from dataclasses import dataclass

from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.machine.jetpacks import jetpacks_for, numbers_of

_HALF = ("fp32", "fp16")
_INT8 = (*_HALF, "int8")
_FP8 = (*_INT8, "fp8")

_NANO_SHEET = "NVIDIA data sheet DS-11105-001"
_NX_SHEET = "NVIDIA data sheet DS-10712-001 v1.7"
_AGX_SHEET = "NVIDIA data sheet DS-10662-001 v1.8"
_MEMORY = "Ultralytics' Jetson guide; no INT8 in TensorRT: not checked"
_XAVIER = "Ultralytics' Jetson guide; FP16 and INT8: not checked"
_T4000 = "Ultralytics' Jetson guide; FP16 and INT8 derived from cores and clock"
_T5000 = "Ultralytics' Jetson guide; INT8 taken as equal to the FP8 rate"
_RTX = "TensorRT-RTX support matrix 1.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One machine, or one GPU generation, that an engine is built for.

    name: what the user types. compute_capability: such as "8.7". memory_gib: shared by CPU and GPU on a Jetson.
    bandwidth_gb_s: of that memory. fp16_tflops, int8_tops: dense, GPU alone. None: differs from card to card, or
    TensorRT has no such path. dla_cores, dla_version: of the deep learning accelerator, 0 without one. jetpacks: the
    releases that serve it; tensorrt: their TensorRT. jetson: a plan has to be built on the device. parts: the modules
    that are one, as /proc/device-tree/compatible names them. precisions: those TensorRT can build for it. source: where
    the numbers are from.
    """

    name: str
    title: str
    compute_capability: str
    memory_gib: float | None
    bandwidth_gb_s: float | None
    fp16_tflops: float | None
    int8_tops: float | None
    dla_cores: int
    dla_version: int
    jetpacks: tuple[str, ...]
    tensorrt: tuple[str, ...]
    jetson: bool
    parts: tuple[str, ...]
    precisions: tuple[str, ...]
    source: str

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it: "sm_87"."""
        return sm(self.compute_capability)

    @property
    def weakly_typed(self) -> bool:
        """Its only TensorRT is 8, which takes FP16 and INT8 from flags, beside a Python older than 3.10."""
        return self.jetson and all(numbers_of(version)[0] == 8 for version in self.tensorrt)


def sm(compute_capability: str) -> str:
    """Write "8.7" as compilers do: "sm_87"."""
    return "sm_" + compute_capability.replace(".", "")


def _jetson(
    name: str,
    title: str,
    cc: str,
    memory: tuple[float, float],
    speed: tuple[float, float | None],
    *,
    source: str,
    since: str = "",
    dla: tuple[int, int] = (0, 0),
    precisions: tuple[str, ...] = _INT8,
) -> Target:
    """One row of the table; memory = (GiB, GB/s), speed = (FP16 TFLOPS, INT8 TOPS), dla = (cores, version)."""
    served = jetpacks_for(cc, since=since)
    return Target(
        name=name,
        title=f"Jetson {title}",
        compute_capability=cc,
        memory_gib=memory[0],
        bandwidth_gb_s=memory[1],
        fp16_tflops=speed[0],
        int8_tops=speed[1],
        dla_cores=dla[0],
        dla_version=dla[1],
        jetpacks=tuple(each.name for each in served),
        tensorrt=tuple(dict.fromkeys(each.tensorrt for each in served)),
        jetson=True,
        parts=tuple(_PARTS[name].split()),
        precisions=precisions,
        source=source,
    )


def _rtx(cc: str, title: str, precisions: tuple[str, ...] = _INT8) -> Target:
    """A GPU generation that TensorRT-RTX builds for ahead of time; sizes and speeds differ from card to card."""
    return Target(
        name="rtx-" + sm(cc).replace("_", ""),
        title=title,
        compute_capability=cc,
        memory_gib=None,
        bandwidth_gb_s=None,
        fp16_tflops=None,
        int8_tops=None,
        dla_cores=0,
        dla_version=0,
        jetpacks=(),
        tensorrt=(),
        jetson=False,
        parts=(),
        precisions=precisions,
        source=_RTX,
    )


# The part numbers of each module: MODULE_NAME_TABLE of jetson_stats (f41d5ca), the lists of Jetson.GPIO, Linux'
# Documentation/devicetree/bindings/arm/tegra.yaml, and the recovery mode table of NVIDIA's Jetson Linux Developer
# Guide; Thor's from meta-tegra (jetson-agx-thor-t4000 has p3834-0000). p3701-0008 and p2888-0008 are industrial ones.
# p3701-0000, of the first AGX Orin kit, has 32 GB beside the GPU of the 64 GB module; it counts as what its memory
# says, since a container often knows no more. A Super is no other part, but a suffix: p3768-0000+p3767-0005-super.
_PARTS = {
    "nano": "p3448-0000 p3448-0002 p3448-0003",
    "tx2": "p3310-1000 p3489-0000 p3489-0888 p3636-0001",
    "xavier-nx": "p3668-0000 p3668-0001 p3668-0003",
    "agx-xavier": "p2888-0001 p2888-0003 p2888-0004 p2888-0005 p2888-0006 p2888-0008",
    "orin-nano-4gb": "p3767-0004",
    "orin-nano-8gb": "p3767-0003 p3767-0005",
    "orin-nano-super": "p3767-0003 p3767-0005",
    "orin-nx-8gb": "p3767-0001",
    "orin-nx-16gb": "p3767-0000",
    "agx-orin-32gb": "p3701-0000 p3701-0004",
    "agx-orin-64gb": "p3701-0005 p3701-0008",
    "thor-t4000": "p3834-0000",
    "thor-t5000": "p3834-0005 p3834-0008",
}

# Orin rows at default (not "super") clocks. An NX of 16 GB and an AGX of 64 GB exist beside the Xavier rows.
_V1, _V2 = (2, 1), (2, 2)
TARGETS: tuple[Target, ...] = (
    _jetson("nano", "Nano", "5.3", (4, 25.6), (0.47, None), precisions=_HALF, source=_MEMORY),
    _jetson("tx2", "TX2", "6.2", (8, 59.7), (1.33, None), precisions=_HALF, source=_MEMORY),
    _jetson("xavier-nx", "Xavier NX", "7.2", (8, 59.7), (6, 12), dla=_V1, source=_XAVIER),
    _jetson("agx-xavier", "AGX Xavier", "7.2", (32, 136.5), (11, 22), dla=_V1, source=_XAVIER),
    _jetson("orin-nano-4gb", "Orin Nano 4GB", "8.7", (4, 34), (5, 10), source=_NANO_SHEET),
    _jetson("orin-nano-8gb", "Orin Nano 8GB", "8.7", (8, 68), (10, 20), source=_NANO_SHEET),
    _jetson("orin-nano-super", "Orin Nano Super", "8.7", (8, 102), (16.7, 33), since="6.1", source=_NANO_SHEET),
    _jetson("orin-nx-8gb", "Orin NX 8GB", "8.7", (8, 102), (12.5, 25), dla=(1, 2), source=_NX_SHEET),
    _jetson("orin-nx-16gb", "Orin NX 16GB", "8.7", (16, 102), (15, 30), dla=_V2, source=_NX_SHEET),
    _jetson("agx-orin-32gb", "AGX Orin 32GB", "8.7", (32, 204.8), (27, 54), dla=_V2, source=_AGX_SHEET),
    _jetson("agx-orin-64gb", "AGX Orin 64GB", "8.7", (64, 204.8), (42.6, 85), dla=_V2, source=_AGX_SHEET),
    _jetson("thor-t4000", "Thor T4000", "11.0", (64, 273), (150, 300), since="7.1", precisions=_FP8, source=_T4000),
    _jetson("thor-t5000", "Thor T5000", "11.0", (128, 273), (258.5, 517), precisions=_FP8, source=_T5000),
    _rtx("7.5", "Turing GPUs (RTX 20); no FP32 matrix products"),
    _rtx("8.0", "Ampere data-centre GPUs (A100, A30)"),
    _rtx("8.6", "Ampere GPUs (RTX 30); nearest to Orin"),
    _rtx("8.9", "Ada GPUs (RTX 40)", _FP8),
    _rtx("12.0", "Blackwell GPUs (RTX 50)", _FP8),
    _rtx("12.1", "DGX Spark (GB10)", _FP8),
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
    known = [*(target.name for target in TARGETS), *ALIASES]
    raise InputError(f"there is no target {name!r}{did_you_mean(wanted, known)}\n`msn-deploy targets` lists them.")


def check_precision(target: Target, precision: str) -> None:
    """Raise InputError, with the reason, if TensorRT cannot build that precision for the target."""
    if precision in target.precisions:
        return
    why = {
        "int8": "its GPU lacks the 8-bit units of later ones",
        "fp8": "FP8 begins with Ada (8.9) and Thor (11.0)",
    }.get(precision, "TensorRT has no such path")
    have = [each.name for each in TARGETS if precision in each.precisions]
    others = f": {', '.join(have)}" if 0 < len(have) <= 6 else ""
    raise InputError(
        f"{target.title} ({target.sm}) has no {precision.upper()} in TensorRT: {why}; it has "
        f"{' and '.join(each.upper() for each in target.precisions)}.\n"
        f"Build with `--precision {target.precisions[-1]}`, or for another `--target`{others}."
    )


def check_dla(target: Target, core: int) -> None:
    """Raise InputError if the target has no such DLA core."""
    if 0 <= core < target.dla_cores:
        return
    if target.dla_cores:
        raise InputError(
            f"{target.title} has {target.dla_cores} DLA cores, counted from 0; core {core} is none of them.\n"
            f"Give `--dla {target.dla_cores - 1}` or less."
        )
    have = ", ".join(each.name for each in TARGETS if each.dla_cores)
    title = target.title if target.jetson else target.name
    raise InputError(f"{title} has no DLA.\nLeave out `--dla` to build for its GPU. Targets with a DLA: {have}.")
