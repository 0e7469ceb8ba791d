"""The ranges of a model's activations: from the cache where everything is the same, else measured and kept.

An entry of the cache is `HOME/calibration/KEY.json`; KEY is a hash of all that the ranges depend on, so an entry is
right or not found. A miss says which parts are others in the entry that is nearest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msn_deploy.core.artifacts import write_json
from msn_deploy.core.errors import InputError, first_line
from msn_deploy.core.home import home_folder
from msn_deploy.core.model_info import AUTO
from msn_deploy.core.opening import MOST_BYTES, read_input
from msn_deploy.core.optional import version_of
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.reader import parse_json, record
from msn_deploy.data.feeds import Samples
from msn_deploy.engine.ort import run_on_one_thread

if TYPE_CHECKING:
    from onnx import ModelProto

    from msn_deploy.quant.layout import Layout
    from msn_deploy.quant.sufficiency import Drift

_LOG = logging.getLogger(__name__)
_SCHEMA = 1
_LARGEST = MOST_BYTES["result"]
PARTS = ("model", "images", "samples", "preprocessing", "method", "tensors", "versions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Largest magnitude to represent per tensor, by `method`; the drift with fewer images, if asked for.

    sqnr_db: what each method kept of the outputs, where one was chosen. cache: what the cache said.
    """

    values: dict[str, float]
    method: str
    sqnr_db: dict[str, float] = field(default_factory=dict)
    drift: tuple[Drift, ...] = ()
    cache: str = ""


def sizes_for_fp16(
    model: ModelProto, samples: Samples, *, key: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the largest magnitude of every activation, and the smallest of what is divided by. key: see below."""
    from msn_deploy.model.graphs import activations  # late, as are the next: they import onnx
    from msn_deploy.quant.fp32_nodes import divisors
    from msn_deploy.quant.histograms import smallest

    maxima = measured_ranges(
        model, samples, activations(model), key=key, method="minmax", percentile=100.0, progress=progress
    ).values
    by = divisors(model)
    return maxima, smallest(model, samples, by, load=run_on_one_thread) if by else {}


def measured_ranges(
    model: ModelProto,
    samples: Samples,
    tensors: Sequence[str],
    *,
    key: Mapping[str, Any],
    method: str,
    percentile: float,
    layout: Layout | None = None,
    leave_out: Collection[str] = (),
    sufficiency: bool = False,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Ranges:
    """Return the ranges of the tensors on the samples, by a method of `quant.scales`; 0 for one that is always zero.

    key: the parts "model", "images", "samples" and "preprocessing" of the cache's key; the others are added here.
    method: AUTO takes the best for INT8 in `layout` (None: for TensorRT) without the layers in `leave_out`; the tensors
    are those that get a pair then. sufficiency: measure the drift.
    """
    from msn_deploy.quant.calibrate import CALIBRATOR, chosen  # late: these import onnx
    from msn_deploy.quant.histograms import collect
    from msn_deploy.quant.layout import TENSORRT
    from msn_deploy.quant.sufficiency import Drift, drift_curve, shuffled_groups

    layout = layout or TENSORRT
    by: dict[str, Any] = {"name": method, **({"percentile": percentile} if method in ("percentile", AUTO) else {})}
    if method == AUTO:
        by |= {"runtime": layout.runtime, "leave_out": sorted(leave_out)}
    parts = {
        **key,
        "method": by,
        "tensors": list(tensors),
        "versions": {"calibrator": CALIBRATOR, **{name: version_of(name) for name in ("onnxruntime", "numpy")}},
    }
    said = ""
    if use_cache:
        found = look_up(parts)
        said = found.said
        if found.entry is not None and (not sufficiency or found.entry.drift is not None):
            points = (found.entry.drift or ()) if sufficiency else ()
            drift = tuple(record(Drift, point, source="the cached drift") for point in points)
            by_cache = found.entry
            return Ranges(
                values=by_cache.ranges,
                method=by_cache.method or method,
                sqnr_db=by_cache.sqnr_db,
                drift=drift,
                cache=said,
            )
        if found.entry is not None:
            said = "cached scales come without a sufficiency curve: measured again"
    groups = shuffled_groups(len(samples)) if sufficiency else None
    histograms = collect(model, samples, tensors, load=run_on_one_thread, groups=groups, progress=progress)
    choice = chosen(
        model,
        samples,
        histograms,
        load=run_on_one_thread,
        method=method,
        percentile=percentile,
        layout=layout,
        leave_out=leave_out,
        progress=progress,
    )
    curve: list[Drift] = []
    if sufficiency:
        curve = drift_curve(histograms, choice.ranges, images=len(samples), method=choice.method, percentile=percentile)
    if use_cache:
        kept = {"drift": [asdict(point) for point in curve]} if sufficiency else {}
        store(parts, {**asdict(choice), **kept})
    return Ranges(values=choice.ranges, method=choice.method, sqnr_db=choice.sqnr_db, drift=tuple(curve), cache=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one file of the cache holds: the key's parts, the ranges by tensor, and the drift where it was measured.

    method, sqnr_db: see Ranges.
    """

    parts: dict[str, Any]
    ranges: dict[str, float]
    method: str = ""
    sqnr_db: dict[str, float] = field(default_factory=dict)
    drift: tuple[dict[str, int | float], ...] | None = None
    schema: int = _SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the cache answers: `entry`, or None; `said`: a hit, or which part of the nearest entry is another."""

    entry: Entry | None
    said: str


def cache_folder() -> Path:
    """Return the folder of the entries; it need not exist."""
    return home_folder() / "calibration"


def entry_path(parts: Mapping[str, Any]) -> Path:
    """Return where the entry of a key lies. parts: one JSON value for each of PARTS."""
    return cache_folder() / f"{_digest(parts)}.json"


def look_up(parts: Mapping[str, Any]) -> Found:
    """Find the entry whose parts are all the same. A damaged entry counts as none, with a warning."""
    path = entry_path(parts)
    entry = _read(path)
    if entry is not None and entry.parts == _plain(parts):
        return Found(entry=entry, said=f"scales from cache {path}")
    nearest = max(_entries(), key=lambda each: _likeness(each.parts, parts), default=None)
    if nearest is None or _likeness(nearest.parts, parts) == 0:
        return Found(entry=None, said="no cached scales for this model")
    changed = [_change(part, nearest.parts.get(part), parts[part]) for part in PARTS]
    return Found(entry=None, said="no cached scales fit: " + "; ".join(filter(None, changed)))


def store(parts: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Keep ranges (and whatever belongs to them) for the key. A folder that can't be written to is a warning."""
    body = {"schema": _SCHEMA, "parts": _plain(parts), **_plain(values)}
    try:
        write_json(entry_path(parts), {**body, "seal": _digest(body)})
    except InputError as cause:
        _LOG.warning("the scales are not cached: %s", str(cause).splitlines()[0])


def _read(path: Path) -> Entry | None:
    try:
        if not os.path.lexists(path):
            return None
        value = parse_json(read_input(path, "result"), source="it", most_bytes=_LARGEST, finite=True)
        seal = value.pop("seal", None) if isinstance(value, dict) else None
        if seal != _digest(value):
            raise InputError("it was changed after it was written")
        entry = record(Entry, value, source="it")
        tensors = entry.parts.get("tensors")
        fits = isinstance(tensors, list) and {*map(str, tensors)} == entry.ranges.keys()
        if entry.schema != _SCHEMA or not fits or min(entry.ranges.values(), default=0) < 0:
            raise InputError("its ranges are not those of its tensors")
    except InputError as cause:
        _LOG.warning("calibration cache %s is damaged (%s) and not used", path, first_line(cause).rstrip("."))
        return None
    return entry


def _entries() -> Iterator[Entry]:
    try:
        paths = sorted(cache_folder().glob("*.json"), key=os.path.getmtime, reverse=True)
    except OSError:
        return
    yield from (entry for path in paths if (entry := _read(path)) is not None)


def _likeness(old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """Return how much of a key is the same; another model's entry is nearest only with the same images."""
    same = [part for part in PARTS if part in old and old[part] == _plain(new[part])]
    return len(same) if "model" in same or "images" in same else 0


def _change(part: str, old: Any, new: Any) -> str:
    if old == _plain(new):
        return ""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        return f"{part} changed ({', '.join(f'{key} {was} -> {now}' for key, was, now in pairs)})"
    short = [str(each)[:8] if isinstance(each, str) else "" for each in (old, new)]
    return f"{part} changed ({short[0]} -> {short[1]})" if all(short) else f"{part} changed"


def _plain(value: Any) -> Any:
    """Return the value as it comes back from JSON: tuples are lists."""
    return parse_json(json.dumps(value), source="the key of the cache", most_bytes=_LARGEST)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:40]
