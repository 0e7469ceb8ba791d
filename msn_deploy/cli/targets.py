"""`msn-deploy targets`."""

from __future__ import annotations

from itertools import groupby

from msn_deploy.cli import output
from msn_deploy.cli.options import Json
from msn_deploy.engine import TARGETS
from msn_deploy.machine.jetpacks import JETPACKS
from msn_deploy.machine.targets import Target

EXAMPLES = """
msn-deploy targets
"""


def command(json: Json = None) -> None:
    """List the devices that engines are built for, with what they can do."""
    if output.emit(TARGETS, json):
        return
    rows = [
        (
            target.name,
            target.compute_capability,
            _number(target.memory_gib),
            _number(target.bandwidth_gb_s),
            _number(target.fp16_tflops),
            _number(target.int8_tops) if target.jetson else "-",
            f"{target.dla_cores}x v{target.dla_version}" if target.dla_cores else "-",
            _range(target),
        )
        for target in TARGETS
    ]
    head = ("target", "SM", "GiB", "GB/s", "FP16", "INT8", "DLA", "JetPack")
    output.show_table(rows, head=head, right=(1, 2, 3, 4, 5), spare=(3, 6, 4))
    output.say_wrapped("FP16 in TFLOPS, INT8 in TOPS: dense, of the GPU alone. `--json` adds sources.")
    served = groupby((each for each in JETPACKS if not each.superseded), key=lambda each: each.tensorrt)
    served_by = [f"{', '.join(each.name for each in group)}: {version}" for version, group in served]
    output.say_wrapped(f"TensorRT of JetPack {'; '.join(served_by)}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _range(target: Target) -> str:
    """Return the JetPacks of a target, first to last of each major release."""
    majors = [list(group) for _, group in groupby(target.jetpacks, key=lambda jetpack: jetpack.partition(".")[0])]
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in majors)
