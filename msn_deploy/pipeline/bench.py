"""`bench`: ONNX files and engines side by side on the same images, in interleaved blocks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.bench import Arm, BenchResult, MeasureOptions, compare, from_json, measure, read_environment
from msn_deploy.bench import to_json as bench_json
from msn_deploy.bench.gate import Gate
from msn_deploy.bench.gate_text import junit, markdown
from msn_deploy.bench.jetson import pinned_mhz
from msn_deploy.bench.live import Watch
from msn_deploy.bench.power import find_sensor, measure_energy
from msn_deploy.bench.profile import preset
from msn_deploy.bench.report import render_html
from msn_deploy.bench.validity import Probe
from msn_deploy.core.artifacts import Parent, open_input, parent_of, publish, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import Runner, load_runner
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.layers import Loaded, check_layers, with_layers

_VERSIONS = ("onnxruntime", "onnx", "numpy", "pillow")
_DIFFERENT_INPUTS = 64  # batches that the queries cycle through


def bench(
    models: Sequence[Path],
    *,
    baseline: Path | None = None,
    provider: str = "cpu",
    batch: int = 1,
    threads: int | None = None,
    profile: str = "single-stream",
    builds: int = 1,
    energy: bool = False,
    layers: bool = False,
    trust: bool = False,
    options: MeasureOptions | None = None,
    root: Path = Path("/"),
    names: Mapping[Path, str] | None = None,
    accuracies: Mapping[Path, float] | None = None,
    replicates: Mapping[Path, Sequence[Path]] | None = None,
    progress: Progress = silent,
    watch: Watch | None = None,
) -> BenchResult:
    """Time every model against the baseline (the first model if None), each query on another real image.

    provider: of ONNX files. threads: None takes every core that this process may use. profile: one that
    `bench.profile.preset` takes. builds: how many times each model is loaded, so that one lucky load does not decide.
    energy: measure it too. layers: time each model's layers too, when all is measured. trust: load engines from
    elsewhere. root: where /proc and /sys are looked for. names: of the rows; file names without suffix if None.
    accuracies: 0 to 1, of models where it is known. replicates: further files that are builds of the same row, as many
    of every model. watch: see `measure`.
    ONNX files that say they are not folded run with the runtime's own norm fusions off, and their row says so.
    The result may be invalid (a throttled machine): look at its `validity`.
    Raises InputError (exit 2), MissingDependency or MissingDevice (exit 3), InvalidMeasurement (exit 4).
    """
    if builds < 1:
        raise InputError(f"{builds} builds cannot be measured.\nGive `--builds` 1 or more.")
    options = options or MeasureOptions()
    sensor = find_sensor(root) if energy else None
    paths = list(dict.fromkeys([*([baseline] if baseline is not None else []), *models]))
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    provided = " and ".join(sorted({"engine" if _is_engine(path) else provider for path in paths}))
    conditions = preset(profile, provider=provided, batch=batch, threads=threads, input="random")
    if conditions.sync != "query":
        raise InputError(
            f"profile {profile} does not wait for every query, and `bench` does.\n"
            "Time it with `trtexec --loadEngine=...`, or use `--profile single-stream`."
        )
    named = {path: (names or {}).get(path, path.name.removesuffix(path.suffix)) for path in paths}
    if len(set(named.values())) < len(paths):
        named = {path: str(path) for path in paths}
    if layers:
        check_layers(paths, provider=provider)
    arms, inputs, loaded = [], set(), []
    for path in paths:
        runner = load_runner(path, threads=threads, provider=provider, trust=trust)
        unfolded = runner.info is not None and not runner.info.folded and runner.info.norm != "none"
        unfolded = unfolded and not _is_engine(path)  # TensorRT fuses what it can
        if unfolded:
            runner.close()
            runner = load_runner(path, threads=threads, provider=provider, fuse_norms=False)
        samples, kind, images = _samples(runner, batch)
        inputs.add(kind)
        loaded.append(Loaded(named[path], runner, samples, fuse_norms=not unfolded))
        facts = {**_facts(runner, unfolded=unfolded), "images": None if images is None else asdict(images)}
        if path in (accuracies or {}):
            facts["accuracy"] = accuracies[path]
        again = [
            load_runner(each, threads=threads, provider=provider, fuse_norms=not unfolded, trust=trust)
            for each in [*[path] * (builds - 1), *(replicates or {}).get(path, ())]
        ]
        arms += [
            Arm(name=named[path], run=_query(each, samples), build=number, facts=facts)
            for number, each in enumerate([runner, *again])
        ]
    if len(inputs) > 1:
        raise InputError("some models say what data they were trained on and others do not: their inputs would differ.")
    taken = measure(arms, options=options, progress=progress, probe=Probe(root), watch=watch)
    firsts = [arm for arm in arms if arm.build == 0]
    result = compare(
        taken,
        baseline=named[paths[0]],
        environment=read_environment(root),
        profile=replace(conditions, input=inputs.pop()),
        pinned_mhz=pinned_mhz(root),
        energies=sensor and measure_energy(firsts, sensor, seconds=options.seconds, progress=progress),
    )
    if layers:
        result = with_layers(result, loaded, threads=threads, provider=provider, root=root, progress=progress)
    return result


def read_result(path: Path) -> BenchResult:
    """Read what `write_json` wrote. Raises InputError."""
    with open_input(path) as stream:
        return from_json(stream.read().decode("utf-8", "replace"), source=str(path))


def write_gate(result: BenchResult, gate: Gate, models: Sequence[Path], *, md: Path | None, xml: Path | None) -> None:
    """Write the judgement as Markdown and as JUnit XML, atomically, with sidecars."""
    for out, text in ((md, markdown), (xml, junit)):
        if out is not None:
            _publish(out, text(result, gate), "gate", models, result)


def write_json(
    result: BenchResult, out: Path, models: Sequence[Path], *, config: Mapping[str, Any] | None = None
) -> None:
    """Write the result with its raw samples, atomically, with a sidecar. config: what else goes into that."""
    _publish(out, bench_json(result), "bench", models, result, config)


def write_html(
    result: BenchResult, out: Path, models: Sequence[Path], *, title: str, stages: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the report page, atomically, with a sidecar. models: all that it speaks of, those of `stages` too."""
    _publish(out, render_html(result, title=title, stages=stages), "report", models, result)


def _publish(
    out: Path,
    text: str,
    kind: str,
    models: Sequence[Path],
    result: BenchResult,
    more: Mapping[str, Any] | None = None,
) -> None:
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
        config={**config, **(more or {})},
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
        "bytes": runner.path.stat().st_size,
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
