"""`bench`: ONNX files, engines and checkpoints side by side on the same images, in interleaved blocks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msn_deploy.bench import Arm, BenchResult, from_json
from msn_deploy.bench import to_json as bench_json
from msn_deploy.bench.compare import compare
from msn_deploy.bench.gate import Gate
from msn_deploy.bench.layers import LayerProfile, limits_of
from msn_deploy.bench.measure import ArmFacts, Watch, measure
from msn_deploy.bench.power import measure_energy
from msn_deploy.bench.profile import Profile, options_for, preset
from msn_deploy.bench.soak import soak
from msn_deploy.bench.throughput import ALONE, under_load, with_throughput
from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.errors import InputError, did_you_mean
from msn_deploy.core.opening import read_input
from msn_deploy.core.progress import Progress, silent
from msn_deploy.engine import Plan, Runner, target_of, what_machine
from msn_deploy.engine.layer_times import time_ort_layers, time_stages, time_trt_layers
from msn_deploy.engine.ort import OrtRunner
from msn_deploy.engine.runner import Stateful
from msn_deploy.engine.tensors import InputShapes
from msn_deploy.engine.trt import TrtRunner
from msn_deploy.machine.environment import read_environment
from msn_deploy.machine.state import Probe, find_sensor, pinned_mhz, usable_cores
from msn_deploy.model.feeds import Feeds
from msn_deploy.model.opened import OpenModel, open_model
from msn_deploy.pipeline.bench_inputs import BenchInputs, batch_of, check_finite, inputs_of
from msn_deploy.pipeline.bench_load import bound_query, load_of, threads_under_load
from msn_deploy.pipeline.bench_request import BenchRequest
from msn_deploy.pipeline.models import ModelFile, onnx_of, open_file
from msn_deploy.report.bench import render_html
from msn_deploy.report.gate_text import junit, markdown

if TYPE_CHECKING:
    from msn_deploy.model.cost import Cost

_FLOATS = {
    "int8": "its INT8 is laid out for TensorRT; ONNX Runtime on a CPU computes such a file in floats, so this time "
    "says nothing about INT8. For a CPU: `msn-deploy calibrate FP32.onnx --runtime onnxruntime`",
    "fp8": "ONNX Runtime on a CPU computes an FP8 file in floats, so this time says nothing about FP8",
}
_VERSIONS = ("onnxruntime", "onnx", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class _Row:
    """A file that is measured: its first build, what runs it, and what it is fed."""

    file: ModelFile
    provider: str
    runner: Runner
    fed: BenchInputs

    @property
    def fuses(self) -> bool:
        """Whether the runtime may merge normalisations into other layers."""
        return not self.file.keeps_norms and self.provider not in ("torch", "torch-cuda")

    def facts(self, accuracy: float | None) -> ArmFacts:
        """Return what the result says of the file."""
        info, told = self.runner.info, self.file.described(self.runner)
        return ArmFacts(
            file=self.file.path.name,
            bytes=self.file.path.stat().st_size,
            runtime_norm_fusions="on" if self.fuses else "off",
            **asdict(told),
            provider=self.provider,
            inputs=self.fed.in_words,
            images=self.fed.images,
            net=info.net if info else None,
            norm=info.norm if info else None,
            folded=info.folded if info else None,
            accuracy=accuracy,
            note=_FLOATS.get(told.precision or "") if (told.runtime, self.provider) == ("tensorrt", "cpu") else None,
        )


def bench(
    models: Sequence[str | os.PathLike[str]] | BenchRequest,
    *,
    seconds: float | None = None,
    root: Path = Path("/"),
    progress: Progress = silent,
    watch: Watch | None = None,
    **request: Any,
) -> BenchResult:
    """Time every model against the baseline, each query on other inputs.

    They come from `data`, or are the images that the model was trained on, or seeded random numbers.

    ONNX files that say they are not folded run with the runtime's own norm fusions off, and their row says so.
    Under a profile that measures rates, each is measured with several queries in flight, and in turn with that one
    query at a time. The result may be invalid (a throttled machine): look at its `validity`.

    Args:
        models: The files, or all that is asked.
        seconds: Measured per model; None: as the options say, or else the profile.
        root: Where /proc and /sys are looked for.
        progress: Called between the blocks.
        watch: See `measure`.
        **request: The other fields of BenchRequest, where `models` are files.

    Raises:
        InputError: Models or options that do not go together.
        MissingDependency: A runtime that is not installed.
        MissingDevice: Hardware that is not here.
        InvalidMeasurement: Too poor conditions to measure at all, or outputs that are not finite.

    Examples:
        >>> import msn_deploy
        >>> result = msn_deploy.benchmark(["runs/cnn3_msn.onnx", "runs/cnn3_msn.int8.onnx"], seconds=0.5)
        >>> [arm.name for arm in result.arms]
        ['cnn3_msn', 'cnn3_msn.int8']
        >>> result.arms[1].ratio > 0  # of the baseline's latency
        True
    """
    asked = models if isinstance(models, BenchRequest) else BenchRequest(models=[*map(Path, models)], **request)
    if seconds is not None:
        given = options_for(asked.profile, seconds)
        asked = replace(asked, options=replace(asked.options or given, seconds=given.seconds))
    options = asked.options or options_for(asked.profile, None)
    sensor = find_sensor(root) if asked.energy else None
    named, further = asked.rows(), asked.further_builds()
    # What cannot be used is refused before any work; the inputs are known when the models are loaded.
    conditions = preset(
        asked.profile,
        provider=" and ".join(sorted({each for _, each in named.values()})),
        input="random",
        cuda_graph=asked.cuda_graph,
        wait=asked.wait,
        streams=asked.streams,
    )
    rated = conditions.measures == "rate"
    cores = asked.threads or len(usable_cores())
    threads = threads_under_load(asked.threads, conditions.streams) if rated else cores
    if asked.layers:
        _check_layers([path for path, _ in named.values()], provider=asked.provider)
    opened, loaded = [], []
    files: dict[Path, ModelFile] = {}

    def open_once(path: Path) -> ModelFile:  # it may be measured in two ways
        if path not in files:
            files[path] = open_file(path, trust=asked.trust, plugins=asked.plugins)
        return files[path]

    for path, provider in named.values():
        file = open_once(path)
        load = _loader(file, provider, asked, threads=threads, conditions=conditions)
        opened.append((file, load))
        loaded.append(load(file))
    batch = batch_of(loaded, asked.batch, asked.shapes)
    _check_names(asked.shapes, loaded)
    arms, rows = [], {}
    for (name, (path, provider)), (file, load), runner in zip(named.items(), opened, loaded, strict=True):
        rows[name] = row = _Row(
            file, provider, runner, inputs_of(runner, batch=batch, shapes=asked.shapes, data=asked.data)
        )
        facts = row.facts(asked.accuracies.get(path))
        others = [file] * (asked.builds - 1) + [open_once(each) for each in further.get(path, ())]
        for number, each in enumerate([runner, *map(load, others)]):
            check_finite(each, row.fed.feeds[: None if number == 0 else 1], random=row.fed.images is None)
            arm = Arm(name=name, run=_query(each, row.fed.feeds), build=number, facts=facts)
            if not rated:
                arms.append(arm)
                continue
            copies = conditions.h2d is not False
            kept = load_of(each, row.fed.feeds, streams=conditions.streams, copies=copies, root=root)
            arms.append(replace(arm, load=kept, facts=replace(facts, in_flight=conditions.streams)))
            if conditions.streams > 1 and copies:  # beside it, as the profile single-stream measures it
                query = arm.run
                if isinstance(each, OrtRunner):
                    alone = _loader(file, provider, asked, threads=cores, conditions=conditions)(file)
                    query = bound_query(cast(OrtRunner, alone), row.fed.feeds)
                arms.append(replace(arm, name=name + ALONE, run=query, facts=replace(facts, threads=cores)))
    inputs = {"random" if row.fed.images is None else "real samples" for row in rows.values()}
    if len(inputs) > 1:
        raise InputError(
            "some models say what data they were trained on and others do not: their inputs would differ.\n"
            "Give all of them the same: `--data`."
        )
    conditions = replace(conditions, batch=batch, threads=threads, input=inputs.pop())
    taken = measure(arms, options=options, progress=progress, probe=Probe(root), watch=watch)
    firsts = [arm for arm in arms if arm.build == 0 and arm.name in rows]
    pinned = pinned_mhz(root)
    result = compare(
        under_load(taken) if rated else taken,
        baseline=next(iter(rows)),
        environment=read_environment(root),
        profile=conditions,
        pinned_mhz=pinned,
        energies=measure_energy(firsts, sensor, seconds=options.seconds, progress=progress) if sensor else None,
    )
    if rated:
        result = with_throughput(result, taken, batch=batch, pinned_mhz=pinned)
        return _under_load(result, asked, firsts, rows, root=root, progress=progress)
    return _with_layers(result, rows, threads=threads, root=root, progress=progress) if asked.layers else result


benchmark = bench  # by this name in the package, where `bench` is the room


def _under_load(
    result: BenchResult,
    asked: BenchRequest,
    firsts: Sequence[Arm],
    rows: Mapping[str, _Row],
    *,
    root: Path,
    progress: Progress,
) -> BenchResult:
    """Return the result with the stages of engines, and with the soak of each model."""
    arms = []
    for arm, measured in zip(result.arms, firsts, strict=True):
        row, throughput = rows[arm.name], arm.throughput
        assert throughput is not None
        assert measured.load is not None
        if isinstance(row.runner, TrtRunner):
            throughput = replace(throughput, stages=time_stages(row.runner, row.fed.feeds))
        if asked.soak_s is not None:
            soaked = soak(
                measured.load,
                seconds=asked.soak_s,
                batch=result.profile.batch,
                probe=Probe(root),
                power_mode=result.environment.power_mode,
                sensor=find_sensor(root) if asked.energy else None,
                progress=progress,
            )
            throughput = replace(throughput, soak=soaked)
        arms.append(replace(arm, throughput=throughput))
    return replace(result, arms=tuple(arms))


def read_result(path: Path) -> BenchResult:
    """Read what `write_json` wrote. Raises InputError."""
    return from_json(read_input(path, "result"), source=str(path))


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
    """Write the report page, atomically, with a sidecar. models: all that it describes, those of `stages` too."""
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
    images = [arm.facts.images for arm in result.arms if arm.facts.images is not None]
    parents += [each for at, each in enumerate(images) if each not in images[:at]]
    config = {"baseline": result.baseline, "profile": asdict(result.profile), "options": dict(result.options)}
    publish(
        out,
        lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace"),
        kind=kind,
        parents=parents,
        versions=_VERSIONS,
        config={**config, **(more or {})},
    )


def _query(runner: Runner, feeds: Sequence[Feeds]) -> Callable[[], object]:
    """Bind a runner to an endless supply of inputs: one call, one query."""
    if not isinstance(runner, Stateful):
        supply = itertools.cycle(feeds)
        return lambda: runner.run(next(supply))
    numbered = itertools.cycle(enumerate(feeds))

    def query() -> object:
        at, given = next(numbered)
        if at == 0:  # the state of an endless stream of random numbers need not stay finite
            runner.reset()
        return runner.run(given)

    return query


def _loader(
    file: ModelFile, provider: str, asked: BenchRequest, *, threads: int, conditions: Profile
) -> Callable[[ModelFile], Runner]:
    """Return what loads a file or a further build of it."""
    wait = conditions.wait if provider in ("engine", "engine-mapped") else None

    def load(each: ModelFile) -> Runner:
        runner = each.runner(
            provider=provider, threads=threads, batch=asked.batch or 1, fuse_norms=not file.keeps_norms,
            cuda_graph=conditions.cuda_graph, wait=wait, mapped=provider == "engine-mapped",
        )  # fmt: skip
        if not asked.state:
            return runner
        return Stateful(runner, asked.state, shapes={shapes.name: shapes.best for shapes in asked.shapes})

    return load


def _whole(runner: Runner) -> Runner:
    """Return the runner that takes all inputs of its network."""
    return runner.runner if isinstance(runner, Stateful) else runner


def _check_names(shapes: Sequence[InputShapes], runners: Sequence[Runner]) -> None:
    """Refuse a shape that is for none of the models."""
    known = [spec.name for runner in runners for spec in _whole(runner).inputs]
    for each in shapes:
        if each.name not in known:
            raise InputError(f"`--shapes {each}`: no model has that input{did_you_mean(each.name, known)}")


def _check_layers(paths: Sequence[Path], *, provider: str) -> None:
    """Refuse, before measuring, what cannot be profiled afterwards. Raises InputError."""
    if provider != "cpu" and any(path.suffix.lower() == ".onnx" for path in paths):
        raise InputError(
            f"--layers: on {provider}, ONNX Runtime's profiler times the launches, not the layers.\n"
            "Leave `--layers` out, take `--device cpu`, or build an engine with `msn-deploy build-engine`."
        )
    checkpoint = next((path for path in paths if path.suffix.lower() == ".safetensors"), None)
    if checkpoint is not None:
        raise InputError(f"--layers times ONNX files and engines; {checkpoint} runs in torch.\nExport it first.")


def _with_layers(
    result: BenchResult, rows: Mapping[str, _Row], *, threads: int, root: Path, progress: Progress
) -> BenchResult:
    """Return the result with a layer profile in every arm."""
    target = target_of(what_machine(root))
    profiles = {}
    for at, (name, row) in enumerate(rows.items()):
        progress(at, len(rows), f"layers of {name}")
        opened, limits, feeds = row.file.opened, None, row.fed.feeds
        if isinstance(row.runner, Stateful):
            feeds = [{**each, **row.runner.start(each)} for each in feeds]
        if isinstance(opened, OpenModel):  # on the CPU, whose limits the table of targets does not have
            model: OpenModel | None = opened
            times = time_ort_layers(opened, feeds, threads=threads, fuse_norms=row.fuses)
        else:
            times = time_trt_layers(cast(TrtRunner, _whole(row.runner)), feeds)
            source = onnx_of(row.file.path)
            model = None if source is None else open_model(source, step="counting operations")
            limits = limits_of(target, cast(Plan, opened).precision)
        profiles[name] = LayerProfile(
            source=times.source,
            runs=times.runs,
            layers=times.layers,
            cost=_cost(
                model, batch=result.profile.batch, shapes={each: array.shape for each, array in feeds[0].items()}
            ),
            limits=limits,
        )
    return replace(result, arms=tuple(replace(arm, layers=profiles[arm.name]) for arm in result.arms))


def _cost(model: OpenModel | None, *, batch: int, shapes: Mapping[str, Sequence[int]]) -> Cost | None:
    if model is None:
        return None
    from msn_deploy.model.cost import cost_of  # late: it imports onnx, which a device that times engines can lack

    return cost_of(model.proto, batch=batch, shapes=shapes)
