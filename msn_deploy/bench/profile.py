"""What does a latency contain? Every number carries its timing profile; numbers of unlike ones do not compare."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from msn_deploy.core.errors import InputError

INPUTS = ("real samples", "random")
SYNCS = ("query", "end")
DEFAULT_SECONDS = 10.0
MLPERF_SECONDS = 600.0  # minimum duration of MLPerf's single-stream scenario (inference_rules.adoc)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Under which conditions a latency holds.

    name: of the preset. provider: "cpu", "cuda", "tensorrt" (of ONNX Runtime), "engine", "torch" (-cuda, -compile), or
    several with " and " between them, where rows of one run differ. batch: samples per query.
    threads: of the runtime, None if it chose. input: one of INPUTS. h2d, d2h: whether copies to and from the device
    are inside the timed call; None where there is no device. cuda_graph: the query replays one. spin_wait: the host
    polls for the end instead of sleeping. streams: queries in flight. sync: "query" waits for every answer before the
    next begins, "end" for the last alone. Raises InputError for values that cannot be used.
    """

    provider: str
    name: str = "single-stream"
    batch: int = 1
    threads: int | None = None
    input: str = "real samples"
    h2d: bool | None = None
    d2h: bool | None = None
    cuda_graph: bool = False
    spin_wait: bool = False
    streams: int = 1
    sync: str = "query"

    def __post_init__(self) -> None:
        if min(self.batch, self.streams) < 1 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"batch, streams and threads must be at least 1, not {self.batch}, {self.streams} and {self.threads}."
            )
        for what, value, known in (("input", self.input, INPUTS), ("sync", self.sync, SYNCS)):
            if value not in known:
                raise InputError(f"a benchmark's {what} is one of {', '.join(known)}; not {value!r}.")


# trtexec: defaults of 10.x and of 11.x, which turned graph and spin-wait on and the copies off (sampleOptions.cpp).
PRESETS: dict[str, dict[str, Any]] = {
    "single-stream": {"h2d": True, "d2h": True, "sync": "query"},
    "mlperf": {"h2d": True, "d2h": True, "sync": "query"},
    "throughput": {"h2d": True, "d2h": True, "streams": 2, "sync": "end"},
    "trtexec-10": {"h2d": True, "d2h": True, "sync": "end"},
    "trtexec-11": {"h2d": False, "d2h": False, "cuda_graph": True, "spin_wait": True, "sync": "end"},
}
_WHY_NOT = {
    "throughput": "keeps two queries in flight, and ONNX Runtime answers one per session with all its threads",
    "trtexec-10": "times queries on the GPU without waiting for each, and ONNX Runtime waits for each",
    "trtexec-11": "leaves out the copies and replays a CUDA graph, and ONNX Runtime does neither",
}


def preset(name: str, *, provider: str, batch: int = 1, threads: int | None = None, input: str) -> Profile:
    """Return the profile called `name` for a provider. Raises InputError for one that the provider cannot keep."""
    if name not in PRESETS:
        raise InputError(f"there is no timing profile {name!r}.\nChoose one of {', '.join(PRESETS)}.")
    if provider != "engine" and name in _WHY_NOT:
        raise InputError(
            f"profile {name} {_WHY_NOT[name]}: it is for TensorRT engines, not for provider {provider}.\n"
            "Use `--profile single-stream`" + (", with `--batch-size` for throughput." if name == "throughput" else ".")
        )
    on_the_cpu = set(provider.split(" and ")) <= {"cpu", "torch", "torch-compile"}
    device: dict[str, Any] = {"h2d": None, "d2h": None} if on_the_cpu else {}
    return Profile(
        name=name, provider=provider, batch=batch, threads=threads, input=input, **{**PRESETS[name], **device}
    )


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
