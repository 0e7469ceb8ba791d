"""What does a latency contain? Every number carries its timing profile; numbers of unlike ones do not compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from msn_deploy.core.errors import InputError
from msn_deploy.core.reader import record
from msn_deploy.engine.cuda import WAITS, Wait
from msn_deploy.machine.environment import Environment

INPUTS = ("real samples", "random")
DEFAULT_SECONDS = 10.0
MLPERF_SECONDS = 600.0  # minimum duration of MLPerf's single-stream scenario (inference_rules.adoc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Under which conditions a latency holds.

    name: of the preset. provider: "cpu", "cuda", "tensorrt" (of ONNX Runtime), "engine" (-mapped), "torch" (-cuda,
    -compile), or several with " and " between them, where rows of one run differ. batch: samples per query.
    threads: of the runtime, None if it chose. input: one of INPUTS. h2d, d2h: whether copies to and from the device
    are inside the timed call; None where there are none: on the CPU, and for an engine on mapped buffers. cuda_graph:
    the query replays one. wait: how engines wait for the GPU, None where the runtime chose. Every query waits for its
    answer before the next begins. The power mode and the clocks are part of the environment. Raises InputError for
    values that cannot be used.
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

    def __post_init__(self) -> None:
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise InputError(f"batch and threads must be at least 1, not {self.batch} and {self.threads}.")
        if self.input not in INPUTS:
            raise InputError(f"a benchmark's input is one of {', '.join(INPUTS)}; not {self.input!r}.")
        if self.wait not in (None, *WAITS):
            raise InputError(f"a benchmark waits in one of the ways {', '.join(WAITS)}; not {self.wait!r}.")


PRESETS = ("single-stream", "mlperf")
_NO_COPIES = {"cpu", "torch", "torch-compile", "engine-mapped"}
# What earlier versions wrote too; their `bench` knew no other values. How an engine waited was left to CUDA.
_GONE = {"spin_wait": False, "streams": 1, "sync": "query"}


def preset(
    name: str,
    *,
    provider: str,
    batch: int = 1,
    threads: int | None = None,
    input: str,
    cuda_graph: bool = False,
    wait: Wait | None = None,
) -> Profile:
    """Return the profile called `name` for a provider. Raises InputError for a name that is not one of PRESETS.

    Both presets let engines spin: waking a thread up takes longer than a small network.
    """
    if name not in PRESETS:
        raise InputError(f"there is no timing profile {name!r}.\nChoose one of {', '.join(PRESETS)}.")
    providers = set(provider.split(" and "))
    copies = None if providers <= _NO_COPIES else True
    return Profile(
        name=name,
        provider=provider,
        batch=batch,
        threads=threads,
        input=input,
        h2d=copies,
        d2h=copies,
        cuda_graph=cuda_graph,
        wait=(wait or "spin") if providers & {"engine", "engine-mapped"} else None,
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
        return DEFAULT_SECONDS if seconds is None else seconds
    if seconds is not None and seconds < MLPERF_SECONDS:
        raise InputError(
            f"profile mlperf measures each model for at least {MLPERF_SECONDS:g} s, not {seconds:g}.\n"
            "Leave out `--seconds`, or use `--profile single-stream`."
        )
    return MLPERF_SECONDS if seconds is None else seconds


def first_difference(ours: Profile, theirs: Profile) -> str | None:
    """Name the first condition in which two profiles differ, or return None.

    The name of the preset does not count: mlperf is single-stream for longer.
    """
    for field in fields(Profile):
        if field.name != "name" and getattr(ours, field.name) != getattr(theirs, field.name):
            return f"{field.name} {getattr(ours, field.name)} against {getattr(theirs, field.name)}"
    return None
