"""Results as a board would give them, made from seeds: dirty blocks, energy, accuracies, layers."""

from __future__ import annotations

from array import array
from dataclasses import replace
from functools import cache

import numpy as np

from msn_deploy.bench import MeasureOptions, Profile, Samples, compare
from msn_deploy.bench.layers import LayerProfile, Limits
from msn_deploy.bench.measure import ArmFacts, ArmSamples, _block_order
from msn_deploy.bench.power import Energy
from msn_deploy.bench.rates import Alone, Rate, Soak, SoakPoint, Throughput
from msn_deploy.engine.layer_times import LayerTime, Stages
from msn_deploy.machine.environment import Environment
from msn_deploy.machine.state import Reading
from msn_deploy.machine.usage import Usage
from msn_deploy.model.cost import Cost

NAMES = ("densenet_bn_unfolded", "densenet_bn", "densenet_producer", "densenet_producer.int8")
LEVELS_MS = (1.93, 1.61, 1.31, 0.74)
ACCURACY = (0.9421, 0.9421, 0.9437, 0.9402)
BYTES = (3_400_000, 3_100_000, 3_100_000, 860_000)
GRAPHS = ("01" * 32, "ab" * 32, "ab" * 32, "02" * 32)
ENVIRONMENT = Environment(
    time_utc="2026-03-01T09:30:00+00:00",
    machine="NVIDIA Jetson Orin Nano Developer Kit",
    cpu="aarch64 implementer 0x41 part 0xd42",
    governor="schedutil",
    load_average=(1.1, 0.9, 0.5),
    power_mode="25W (id 1)",
    versions={"onnxruntime": "1.23.0", "tensorrt": "10.3.0"},
)


@cache
def realistic(names=NAMES, *, rounds=60, queries=14, dirty=32, plain=False):
    """Compare arms of `names`; `dirty` blocks in a row ran while the processor was throttled. plain: nothing extra."""
    rng = np.random.default_rng(1)
    order = _block_order(len(names), rounds, seed=3)
    first = int(0.55 * len(order))
    lost = set() if plain else set(range(first, first + dirty))
    now, taken = 0, [[] for _ in names]
    for slot, index in enumerate(order):
        slow = 1.45 if slot in lost else 1 + 0.02 * np.sin(slot / 40)
        raw = (1e6 * LEVELS_MS[index] * slow * rng.lognormal(0, 0.03, queries)).astype(int)
        raw[rng.integers(queries)] *= 1 + 2 * (rng.random() < 0.1)
        taken[index].append((array("q", raw.tolist()), now, slot))
        now += int(1.07 * raw.sum())
    arms = []
    for index, name in enumerate(names):
        blocks, starts, slots = zip(*taken[index], strict=True)
        facts = ArmFacts(file=f"{name}.onnx", sha256="8c" * 32, folded="unfolded" not in name)
        if not plain:
            facts = replace(facts, accuracy=ACCURACY[index], bytes=BYTES[index], graph=GRAPHS[index])
        arms.append(ArmSamples(name=name, facts=facts, blocks=blocks, block_starts_ns=starts, slots=slots))
    readings = [
        Reading(
            throttled={"cpu0 core_throttle": sum(block < slot for block in lost)},
            clocks_mhz={"cpu": 1510.0, "gpu": 624.0},
            temperatures_c={"cpu-thermal": 51 + slot / 300},
            cooling={},
            load=1.2,
        )
        for slot in range(len(order) + 1)
    ]
    result = compare(
        Samples(arms=tuple(arms), options=MeasureOptions(), readings=() if plain else tuple(readings)),
        baseline=names[0],
        environment=ENVIRONMENT,
        profile=Profile(provider="cpu", threads=6),
        energies=None if plain else {name: _energy(ms) for name, ms in zip(names, LEVELS_MS, strict=False)},
    )
    if plain:
        return result
    return replace(result, arms=tuple(replace(arm, layers=layers_of(arm.median_ms)) for arm in result.arms))


def loaded(names=NAMES):
    """A result under load that says all there is."""
    alone = Alone(
        rate=Rate(per_s=517.26, interval=(515.0, 519.5)), median_ms=1.931, threads=6, gain=1.873,
        gain_interval=(1.86, 1.885),
    )  # fmt: skip
    points = tuple(
        SoakPoint(
            at_s=6.0 * at, per_s=960.0 - at, hottest_c=60.0 + at / 10, clocks_mhz={"gpu": 918.0 - at}, watts=9.0,
            cause=None,
        )
        for at in range(300)
    )  # fmt: skip
    soak = Soak(
        seconds=1800.0, power_mode="25W (id 1)", at_first=960.1, sustained=Rate(per_s=712.4, interval=(705.2, 719.6)),
        throttled_after_s=420.0, throttled_by="gpu clock below 75% of 918 MHz", slower_after_s=600.0, points=points,
    )  # fmt: skip
    throughput = Throughput(
        in_flight=4,
        rate=Rate(per_s=968.83, interval=(960.2, 977.5)),
        alone=alone,
        usage=Usage(cores=1.234, gpu=0.87, host_mib=345.6, shared_mib=2345.6),
        stages=Stages(copy_in_ms=0.12, compute_ms=1.55, copy_out_ms=0.013, runs=50),
        soak=soak,
    )
    result = realistic(names)
    arms = tuple(
        replace(arm, throughput=throughput, ns_per_query=tuple(1e9 / 968.83 for _ in arm.samples_ns))
        for arm in result.arms
    )
    return replace(
        result, arms=arms, profile=replace(result.profile, name="throughput", measures="rate", streams=4, batch=8)
    )


def layers_of(ms, *, count=40):
    """A profile whose layers take longer the earlier they come, with names as exporters write them."""
    weights = [1 / (at + 2) for at in range(count)]
    layers = [
        LayerTime(
            name=f"node_features_denseblock_{at // 12}_conv2d_{at}",
            operator="Conv" if at % 3 else "BatchNormalization",
            us=1e3 * ms * weight / sum(weights),
            share=weight / sum(weights),
            precision="fp16",
            fused_from=(f"node_conv2d_{at}", f"node_relu_{at}") if at % 3 else (),
        )
        for at, weight in enumerate(weights)
    ]
    return LayerProfile(
        source="TensorRT's layer profiler",
        runs=50,
        layers=tuple(layers),
        cost=Cost(
            batch=1, flops=590_000_000, weight_bytes=3_100_000, activation_bytes=11_400_000, uncounted=("Softmax",)
        ),
        limits=Limits(
            device="Jetson Orin Nano 8GB",
            precision="fp16",
            peak_gops=10_000.0,
            bandwidth_gb_s=68.0,
            source="NVIDIA data sheet DS-11105-001",
        ),
    )


def _energy(ms):
    return Energy(
        mj=5.2 * ms,
        interval_mj=(5.0 * ms, 5.5 * ms),
        idle_w=4.12,
        busy_w=9.32,
        rail="VDD_IN",
        sensor_period_ms=16,
        updates=600,
    )


def contrast(first, second):
    """Contrast of two colours, each (red, green, blue) of 0 to 255, as WCAG 2 defines it: 1 to 21."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
