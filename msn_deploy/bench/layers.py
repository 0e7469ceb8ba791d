"""Where does the time of a query go, and how near is it to what the device could do?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import record
from msn_deploy.engine.layer_times import LayerTime
from msn_deploy.machine.targets import Target

if TYPE_CHECKING:
    from msn_deploy.model.cost import Cost  # late: it imports onnx

_MOST = 1e30  # of any amount: what is computed from two of them is finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a device can do at its highest clock: operations (1e9/s) in one precision, None if not known; memory, GB/s.

    source: where the numbers are from.
    """

    device: str
    precision: str
    peak_gops: float | None
    bandwidth_gb_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """Layers of one arm, timed after the measured run with a profiler on, and what its graph needs at least.

    source, runs, layers: see engine.layer_times. cost: None where the ONNX file is not at hand or leaves sizes open.
    limits: None where the device's are not known.
    """

    source: str
    runs: int
    layers: tuple[LayerTime, ...]
    cost: Cost | None = None
    limits: Limits | None = None

    @property
    def total_us(self) -> float:
        """Sum of the layers' medians."""
        return sum(layer.us for layer in self.layers)

    def slowest(self, count: int) -> list[LayerTime]:
        """Return that many layers, the slowest first."""
        return sorted(self.layers, key=lambda layer: -layer.us)[:count]


def limits_of(target: Target | None, precision: str) -> Limits | None:
    """Return the limits of a target for "fp32", "fp16" or "int8"; None if it is not known.

    A target's table has no FP32 rate: then only its memory limits.
    """
    if target is None or target.bandwidth_gb_s is None:
        return None
    tera = {"fp16": target.fp16_tflops, "int8": target.int8_tops}.get(precision)
    return Limits(
        device=target.title,
        precision=precision,
        peak_gops=None if tera is None else 1e3 * tera,
        bandwidth_gb_s=target.bandwidth_gb_s,
        source=target.source,
    )


def roofline_parts(profile: LayerProfile, median_ms: float) -> list[str]:
    """Say what a query needs, what was reached at its median and, where it is known, what the device allows.

    The limit is the roofline's (S. Williams et al., Roofline, CACM 2009): the longer of operations over the peak rate
    and bytes over the bandwidth.
    """
    cost = profile.cost
    if cost is None:
        return []
    rate, moved = cost.flops / median_ms / 1e6, cost.bytes / median_ms / 1e6
    parts = [
        f"{_scaled(cost.flops)}FLOP",
        f"{_scaled(cost.bytes)}B moved",
        f"{cost.intensity:.3g} FLOP/B",
        f"reached {rate:.3g} GFLOP/s and {moved:.3g} GB/s",
    ]
    limits = profile.limits
    if limits is not None:
        compute_ms = 0.0 if limits.peak_gops is None else cost.flops / limits.peak_gops / 1e6
        memory_ms = cost.bytes / limits.bandwidth_gb_s / 1e6
        bound, which = max((memory_ms, "memory"), (compute_ms, f"{limits.precision.upper()} arithmetic"))
        parts.append(f"{limits.device} allows {bound:.3g} ms ({which}), {100 * bound / median_ms:.3g} % of the median")
        if limits.peak_gops is None:
            parts.append(f"its {limits.precision.upper()} rate is not known")
    if cost.uncounted:
        parts.append(f"without the operations of {', '.join(cost.uncounted)}")
    return parts


def _scaled(value: float) -> str:
    """Write a number before its unit, such as "1.23 M"."""
    for prefix in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} G"


def layers_from_json(value: Mapping[str, Any]) -> LayerProfile:
    """Read a profile's JSON values. Raises InputError or KeyError for anything else."""
    layers = tuple(record(LayerTime, row, source="a layer") for row in value["layers"])
    cost, limits = value["cost"], value["limits"]
    if cost is not None:
        from msn_deploy.model.cost import Cost

        cost = record(Cost, cost, source="the cost")
        _check_amounts("the cost", cost.flops, cost.weight_bytes, cost.activation_bytes, least=cost.bytes)
    if limits is not None:
        limits = record(Limits, limits, source="the limits")
        rates = (limits.bandwidth_gb_s, limits.bandwidth_gb_s if limits.peak_gops is None else limits.peak_gops)
        _check_amounts("the limits", least=min(rates))
    _check_amounts("a layer", *(each for layer in layers for each in (layer.us, layer.share)))
    plain = {name: each for name, each in value.items() if name in ("source", "runs")}
    return record(LayerProfile, plain, source="a layer profile", layers=layers, cost=cost, limits=limits)


def _check_amounts(what: str, *values: float, least: float = 1.0) -> None:
    """Raise InputError for an amount below 0, or for a `least` that nothing can be divided by."""
    if min(values, default=0) < 0 or least <= 0 or max(*values, least, 1 / least) > _MOST:
        raise InputError(f"{what} holds something that is not an amount.")
