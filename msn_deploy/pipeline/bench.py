"""`bench`: ONNX files and engines side by side on the same images, in interleaved blocks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.bench import Arm, BenchResult, MeasureOptions, Profile, compare, measure, read_environment
from msn_deploy.bench import to_json as bench_json
from msn_deploy.bench.report import render_html
from msn_deploy.core.artifacts import Parent, parent_of, publish, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import Runner, load_runner
from msn_deploy.pipeline.images import preprocess_for, split_for

_VERSIONS = ("onnxruntime", "onnx", "numpy", "pillow")
_DIFFERENT_INPUTS = 64  # batches that the queries cycle through


def bench(
    models: Sequence[Path],
    *,
    baseline: Path | None = None,
    provider: str = "cpu",
    batch: int = 1,
    threads: int | None = None,
    trust: bool = False,
    options: MeasureOptions | None = None,
    names: Mapping[Path, str] | None = None,
    progress: Progress = silent,
) -> BenchResult:
    """Time every model against the baseline (the first model if None), each query on another real image.

    provider: of ONNX files. threads: None takes every core that this process may use. trust: load engines from
    elsewhere. names: of the rows; file names without suffix if None. ONNX files that say they are not folded run with
    the runtime's own norm fusions off, and their row says so.
    Raises InputError (exit 2), MissingDependency or MissingDevice (exit 3), InvalidMeasurement (exit 4).
    """
    paths = list(dict.fromkeys([*([baseline] if baseline is not None else []), *models]))
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    named = {path: (names or {}).get(path, path.name.removesuffix(path.suffix)) for path in paths}
    if len(set(named.values())) < len(paths):
        named = {path: str(path) for path in paths}
    arms, inputs, provided = [], set(), set()
    for path in paths:
        runner = load_runner(path, threads=threads, provider=provider, trust=trust)
        provided.add("engine" if _is_engine(path) else provider)
        unfolded = runner.info is not None and not runner.info.folded and runner.info.norm != "none"
        unfolded = unfolded and not _is_engine(path)  # TensorRT fuses what it can
        if unfolded:
            runner.close()
            runner = load_runner(path, threads=threads, provider=provider, fuse_norms=False)
        samples, kind, images = _samples(runner, batch)
        inputs.add(kind)
        facts = {**_facts(runner, unfolded=unfolded), "images": None if images is None else asdict(images)}
        arms.append(Arm(name=named[path], run=_query(runner, samples), facts=facts))
    if len(inputs) > 1:
        raise InputError("some models say what data they were trained on and others do not: their inputs would differ.")
    profile = Profile(provider=" and ".join(sorted(provided)), batch=batch, threads=threads, input=inputs.pop())
    taken = measure(arms, options=options or MeasureOptions(), progress=progress)
    return compare(taken, baseline=named[paths[0]], environment=read_environment(), profile=profile)


def write_json(result: BenchResult, out: Path, models: Sequence[Path]) -> None:
    """Write the result with its raw samples, atomically, with a sidecar."""
    _publish(out, bench_json(result), "bench", models, result)


def write_html(
    result: BenchResult, out: Path, models: Sequence[Path], *, title: str, stages: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the report page, atomically, with a sidecar. models: all that it speaks of, those of `stages` too."""
    _publish(out, render_html(result, title=title, stages=stages), "report", models, result)


def _publish(out: Path, text: str, kind: str, models: Sequence[Path], result: BenchResult) -> None:
    parents = [parent_of(path, role="model") for path in models]
    images = [Parent(**arm.facts["images"]) for arm in result.arms if arm.facts.get("images")]
    parents += [each for at, each in enumerate(images) if each not in images[:at]]
    config = {"baseline": result.baseline, "profile": asdict(result.profile), "options": dict(result.options)}
    publish(
        out,
        lambda path: path.write_text(text, encoding="utf-8"),
        kind=kind,
        parents=parents,
        versions=_VERSIONS,
        config=config,
    )


def _query(runner: Runner, samples: list[NDArray[np.float32]]) -> Any:
    """Bind a runner to an endless supply of inputs: one call, one query."""
    run, supply = runner.run, itertools.cycle(samples)
    return lambda: run(next(supply))


def _is_engine(path: Path) -> bool:
    return path.suffix.lower() == ".engine"


def _samples(runner: Runner, batch: int) -> tuple[list[NDArray[np.float32]], str, Parent | None]:
    fixed = runner.input_shape[0]
    if fixed is not None and fixed != batch:
        raise InputError(
            f"{runner.name} has a fixed batch of {fixed}, {batch} was asked for.\n"
            f"Export it with `--batch {batch}` or `--batch dynamic`."
        )
    most = getattr(runner, "largest_batch", None)  # of an engine: more would be several queries
    if most is not None and batch > most:
        raise InputError(f"{runner.name} takes at most {most} images at once.\nBuild it with `--batch {batch}`.")
    rng = np.random.default_rng(0)
    if runner.info is None or not runner.info.data:
        if None in runner.input_shape[1:]:
            raise InputError(f"{runner.name} leaves sizes other than the batch open; they have to be fixed.")
        shape = (_DIFFERENT_INPUTS, batch, *(int(size or 0) for size in runner.input_shape[1:]))
        return list(rng.standard_normal(shape, dtype=np.float32)), "random", None
    prep = preprocess_for(runner.info, runner.input_shape, model=runner.name)
    split = split_for(runner.info, prep, None, "test")
    images = to_input(split.images, prep)
    chosen = rng.permutation(max(len(images), _DIFFERENT_INPUTS * batch)) % len(images)
    batches = [images[chosen[at * batch : (at + 1) * batch]] for at in range(_DIFFERENT_INPUTS)]
    return batches, "real samples", split.as_parent()


def _facts(runner: Runner, *, unfolded: bool) -> dict[str, Any]:
    info = runner.info
    facts = {
        "file": runner.path.name,
        "sha256": sha256_of(runner.path),
        "size_bytes": runner.path.stat().st_size,
        "runtime_norm_fusions": "off" if unfolded else "on",
    }
    if info is not None:
        facts |= {
            "net": info.net,
            "norm": info.norm,
            "precision": info.precision,
            "folded": info.folded,
            "graph": info.graph,
        }
    return facts
