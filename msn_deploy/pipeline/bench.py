"""`bench`: ONNX files, engines and checkpoints side by side on the same images, in interleaved blocks."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msn_deploy.bench import Arm, BenchResult, MeasureOptions, compare, from_json, measure
from msn_deploy.bench import to_json as bench_json
from msn_deploy.bench.gate import Gate
from msn_deploy.bench.live import Watch
from msn_deploy.bench.power import find_sensor, measure_energy
from msn_deploy.bench.profile import preset
from msn_deploy.core.artifacts import Parent, open_input, parent_of, publish, sha256_of
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.data import to_input
from msn_deploy.engine import PROVIDERS, Runner, load_runner
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.state import Probe, pinned_mhz
from msn_deploy.pipeline.images import preprocess_for, split_for
from msn_deploy.pipeline.layers import Loaded, check_layers, with_layers
from msn_deploy.report.bench import render_html
from msn_deploy.report.gate_text import junit, markdown
from msn_deploy.training.runner import TorchRunner, torch_provider

_VERSIONS = ("onnxruntime", "onnx", "numpy", "pillow")
_REPLICATE = re.compile(r"(.+)\.r\d+\.engine")
_DIFFERENT_INPUTS = 64  # batches that the queries cycle through


def bench(
    models: Sequence[Path],
    *,
    baseline: Path | None = None,
    provider: str = "cpu",
    compiled: bool = False,
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
    progress: Progress = silent,
    watch: Watch | None = None,
) -> BenchResult:
    """Time every model against the baseline (the first model if None), each query on another real image.

    provider: of ONNX files; a checkpoint runs in torch on the same device, with `compiled` once more by torch.compile.
    threads: None takes every core that this process may use. profile: one that
    `bench.profile.preset` takes. builds: how many times each model is loaded, so that one lucky load does not decide.
    energy: measure it too. layers: time each model's layers too, when all is measured. trust: load engines from
    elsewhere. root: where /proc and /sys are looked for. names: of the rows; file names without suffix if None.
    accuracies: 0 to 1, of models where it is known. watch: see `measure`. X.r2.engine, X.r3.engine, ... beside X.engine
    are further builds of its row.
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
    paths, further = _further_builds(paths)
    rows = _rows(paths, names or {}, provider, compiled=compiled)
    provided = " and ".join(sorted({each for _, each in rows.values()}))
    conditions = preset(profile, provider=provided, batch=batch, threads=threads, input="random")
    if conditions.sync != "query":
        raise InputError(
            f"profile {profile} does not wait for every query, and `bench` does.\n"
            "Time it with `trtexec --loadEngine=...`, or use `--profile single-stream`."
        )
    if layers:
        check_layers([path for path, _ in rows.values()], provider=provider)
    load = partial(_load, batch=batch, threads=threads, trust=trust)
    arms, inputs, loaded = [], set(), []
    for name, (path, provided_by) in rows.items():
        runner = load(path, provided_by)
        unfolded = runner.info is not None and not runner.info.folded and runner.info.norm != "none"
        unfolded = unfolded and provided_by in PROVIDERS  # TensorRT fuses what it can, torch only when it compiles
        if unfolded:
            runner.close()
            runner = load(path, provided_by, fuse_norms=False)
        samples, kind, images = _samples(runner, batch)
        inputs.add(kind)
        loaded.append(Loaded(name, runner, samples, fuse_norms=not unfolded))
        facts = {
            **_facts(runner, fuses=not unfolded and provided_by not in ("torch", "torch-cuda")),
            "provider": provided_by,
            "images": None if images is None else asdict(images),
        }
        if path in (accuracies or {}):
            facts["accuracy"] = accuracies[path]
        again = [
            load(each, provided_by, fuse_norms=not unfolded)
            for each in [*[path] * (builds - 1), *further.get(path, ())]
        ]
        arms += [
            Arm(name=name, run=_query(each, samples), build=number, facts=facts)
            for number, each in enumerate([runner, *again])
        ]
    if len(inputs) > 1:
        raise InputError("some models say what data they were trained on and others do not: their inputs would differ.")
    taken = measure(arms, options=options, progress=progress, probe=Probe(root), watch=watch)
    firsts = [arm for arm in arms if arm.build == 0]
    result = compare(
        taken,
        baseline=next(iter(rows)),
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


def _further_builds(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Return the files that get a row, and the replicates (as `build-engine` names them) of those that have some."""
    further: dict[Path, list[Path]] = {}
    for path in paths:
        replicate = _REPLICATE.fullmatch(path.name)
        if replicate and (first := path.with_name(f"{replicate[1]}.engine")) in paths:
            further.setdefault(first, []).append(path)
    return [path for path in paths if not any(path in each for each in further.values())], further


def _rows(
    paths: Sequence[Path], names: Mapping[Path, str], provider: str, *, compiled: bool
) -> dict[str, tuple[Path, str]]:
    """Return by name of the row: which file, run by what, as the timing profile calls it."""
    named = {path: names.get(path, path.name.removesuffix(path.suffix)) for path in paths}
    if len(set(named.values())) < len(paths):
        named = {path: str(path) for path in paths}
    rows = {}
    for path, name in named.items():
        if path.suffix.lower() != ".safetensors":
            rows[name] = (path, "engine" if path.suffix.lower() == ".engine" else provider)
            continue
        rows[name] = (path, torch_provider(provider, compiled=False))
        if compiled:
            rows[f"{name} compiled"] = (path, torch_provider(provider, compiled=True))
    if compiled and len(rows) == len(paths):
        raise InputError("--compile is for checkpoints, and none is among the models.\nAdd one, or leave it out.")
    return rows


def _load(
    path: Path, provider: str, *, batch: int, threads: int, trust: bool, fuse_norms: bool = True
) -> Runner:  # fmt: skip
    if provider.startswith("torch"):
        return TorchRunner(path, provider=provider, batch=batch, threads=threads)
    return load_runner(path, threads=threads, provider=provider, fuse_norms=fuse_norms, trust=trust)


def _samples(runner: Runner, batch: int) -> tuple[list[NDArray[np.float32]], str, Parent | None]:
    fixed = runner.input_shape[0]
    if fixed is not None and fixed != batch:
        raise InputError(
            f"{runner.name} has a fixed batch of {fixed}, {batch} was asked for.\n"
            f"Export it with `--batch-size {batch}` or `--batch-size dynamic`."
        )
    most = getattr(runner, "largest_batch", None)  # of an engine: more would be several queries
    if most is not None and batch > most:
        raise InputError(f"{runner.name} takes at most {most} images at once.\nBuild it with `--batch-size {batch}`.")
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


def _facts(runner: Runner, *, fuses: bool) -> dict[str, Any]:
    info = runner.info
    facts = {
        "file": runner.path.name,
        "sha256": sha256_of(runner.path),
        "bytes": runner.path.stat().st_size,
        "runtime_norm_fusions": "on" if fuses else "off",
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
