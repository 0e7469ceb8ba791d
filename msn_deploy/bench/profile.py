"""What does a latency contain? Every number carries its timing profile; numbers of unlike ones do not compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from msn_deploy.bench.measure import MeasureOptions
from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import record
from msn_deploy.engine.cuda import WAITS, Wait
from msn_deploy.machine.environment import Environment

INPUTS = ("real samples", "random")
DEFAULT_SECONDS = 10.0
MLPERF_SECONDS = 600.0  # minimum duration of MLPerf's single-stream scenario (inference_rules.adoc)
MOST_STREAMS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Under which conditions a latency holds.

    name: of the preset. provider: "cpu", "cuda", "tensorrt" (of ONNX Runtime), "engine" (-mapped), "torch" (-cuda,
    -compile), or several with " and " between them, where rows of one run differ. batch: samples per query.
    threads: of the runtime, None if it chose. input: one of INPUTS. h2d, d2h: whether copies to and from the device
    are inside the timed call; None where there are none: on the CPU, and for an engine on mapped buffers; False where
    they are left out. cuda_graph: the query replays one. wait: how engines wait for the GPU, None where the runtime
    chose. streams: how many queries are in flight at a time; each waits for its answer before the next of its stream
    begins. measures: what models are compared by, the latency of a query or the rate at which they are answered. The
    power mode and the clocks are part of the environment. Raises InputError for values that cannot be used.
    """

    provider: str
    name: str = "single-stream"
    batch: int = 1
    threads: int | None = None
    input: str = "real samples"
    h2d: bool | None = None
    d2h: bool | None = None
    cuda_graph: bool = False
    wait: Wait | None = None
    streams: int = 1
    measures: Literal["latency", "rate"] = "latency"

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MOST_STREAMS:
            raise InputError(f"a benchmark keeps 1 to {MOST_STREAMS} queries in flight, not {self.streams}.")
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise InputError(f"batch and threads must be at least 1, not {self.batch} and {self.threads}.")
        if self.input not in INPUTS:
            raise InputError(f"a benchmark's input is one of {', '.join(INPUTS)}; not {self.input!r}.")
        if self.wait not in (None, *WAITS):
            raise InputError(f"a benchmark waits in one of the ways {', '.join(WAITS)}; not {self.wait!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a name of a profile stands for. Where nothing else is asked for, its values are taken."""

    measures: Literal["latency", "rate"] = "latency"
    streams: int = 1
    wait: Wait = "spin"
    cuda_graph: bool = False
    copies: bool = True
    seconds: float = DEFAULT_SECONDS
    block_ms: float = 25.0
    """Under load a block is long beside what it takes to start and to end it."""
    warmup_seconds: float = 2.0
    engines_only: bool = False
    described: str = ""


# trtexec: samples/common/sampleOptions.h and sampleInference.cpp of NVIDIA/TensorRT (10.16: 52399f55; 11.0: 771d8efd;
# 11.1: 82d1dca8). 1 stream, 200 ms of warm-up, 3 s. Until 10.16 `spin`, `graph` and `skipTransfers` are false: it
# copies, and sleeps while it waits; from 11.0 on `spin` and `graph` are true and `includeTransfers` is false. It has
# one more query queued on a stream than it waits for (`mDepth(1 + inference.overlap)`); `--exposeDMA` ends that.
PRESETS = {
    "single-stream": Preset(),
    "mlperf": Preset(seconds=MLPERF_SECONDS),
    "throughput": Preset(measures="rate", streams=2, block_ms=250.0),
    "trtexec-10": Preset(
        measures="rate", wait="sleep", seconds=3.0, block_ms=100.0, warmup_seconds=0.2, engines_only=True,
        described="as `trtexec --exposeDMA` of TensorRT 8 and 10",
    ),
    "trtexec-11": Preset(
        measures="rate", cuda_graph=True, copies=False, seconds=3.0, block_ms=100.0, warmup_seconds=0.2,
        engines_only=True, described="as `trtexec --exposeDMA` of TensorRT 11",
    ),
}  # fmt: skip
_NO_COPIES = {"cpu", "torch", "torch-compile", "engine-mapped"}
# What earlier versions wrote too; their `bench` knew no other values. How an engine waited was left to CUDA.
_GONE = {"spin_wait": False, "sync": "query"}


def preset_of(name: str) -> Preset:
    """Return what a name stands for. Raises InputError for one that is not among PRESETS."""
    if name not in PRESETS:
        raise InputError(f"there is no timing profile {name!r}.\nChoose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def preset(
    name: str,
    *,
    provider: str,
    batch: int = 1,
    threads: int | None = None,
    input: str,
    cuda_graph: bool = False,
    wait: Wait | None = None,
    streams: int | None = None,
) -> Profile:
    """Return the profile called `name` for a provider. Raises InputError for a name that is not one of PRESETS.

    Engines spin if nothing else is asked for, but in trtexec-10: waking a thread up takes longer than a small network.
    """
    asked = preset_of(name)
    providers = set(provider.split(" and "))
    copies = None if providers <= _NO_COPIES else asked.copies
    return Profile(
        name=name,
        provider=provider,
        batch=batch,
        threads=threads,
        input=input,
        h2d=copies,
        d2h=copies,
        cuda_graph=cuda_graph or asked.cuda_graph,
        wait=(wait or asked.wait) if providers & {"engine", "engine-mapped"} else None,
        streams=asked.streams if streams is None else streams,
        measures=asked.measures,
    )


def profile_from(value: Mapping[str, Any]) -> Profile:
    """Read a profile of a result, of earlier versions too. Raises AttributeError or InputError."""
    kept = {key: each for key, each in value.items() if key not in _GONE or _GONE[key] != each}
    return record(Profile, kept, source="profile")


def in_words(profile: Profile, environment: Environment) -> str:
    """Write under which conditions a latency holds, with the state of a Jetson: "engine, wait: spin, batch 1, ..."."""
    pinned = {True: "clocks pinned", False: "clocks not pinned", None: None}[environment.clocks_pinned]
    parts = (
        profile.provider,
        PRESETS[profile.name].described if profile.name in PRESETS else None,
        f"{profile.streams} in flight" if profile.measures == "rate" else None,
        "without copies" if profile.h2d is False else None,
        "CUDA graph" if profile.cuda_graph else None,
        None if profile.wait is None else f"wait: {profile.wait}",
        f"batch {profile.batch}",
        f"{profile.threads} threads",
        f"input: {profile.input}",
        environment.power_mode and f"power mode {environment.power_mode}",
        pinned,
    )
    return ", ".join(part for part in parts if part)


def seconds_for(name: str, seconds: float | None) -> float:
    """Return the time to measure for; None chooses. Raises InputError if it is too short for the profile."""
    if name != "mlperf":
        return preset_of(name).seconds if seconds is None else seconds
    if seconds is not None and seconds < MLPERF_SECONDS:
        raise InputError(
            f"profile mlperf measures each model for at least {MLPERF_SECONDS:g} s, not {seconds:g}.\n"
            "Leave out `--seconds`, or use `--profile single-stream`."
        )
    return MLPERF_SECONDS if seconds is None else seconds


def options_for(name: str, seconds: float | None) -> MeasureOptions:
    """Return how a profile measures. seconds: as for `seconds_for`. Raises InputError."""
    asked = preset_of(name)
    return MeasureOptions(
        seconds=seconds_for(name, seconds), block_ms=asked.block_ms, warmup_seconds=asked.warmup_seconds
    )


def first_difference(ours: Profile, theirs: Profile) -> str | None:
    """Name the first condition in which two profiles differ, or return None.

    The name of the preset does not count: mlperf is single-stream for longer.
    """
    for field in fields(Profile):
        if field.name != "name" and getattr(ours, field.name) != getattr(theirs, field.name):
            return f"{field.name} {getattr(ours, field.name)} against {getattr(theirs, field.name)}"
    return None
