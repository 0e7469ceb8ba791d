"""`suite`: measure every network of a suite at every batch, one run per case; resume where it was interrupted.

A finished case is `NAME.json`, the result of `bench` with its raw samples; its sidecar holds the key, a digest of all
that it depends on. What has the right key is not measured again. What all cases come to is `suite.json`, with a table
beside it, and a page.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msn_deploy import __version__
from msn_deploy.bench import ArmResult, BenchResult, MeasureOptions
from msn_deploy.bench.compare import ratio_between
from msn_deploy.bench.stats import Ratio, holm
from msn_deploy.core.artifacts import Artifact, json_bytes, parent_of, publish_together, read_sidecar, sha256_of
from msn_deploy.core.errors import InputError, InvalidMeasurement, MissingDevice
from msn_deploy.core.home import builtin_folder
from msn_deploy.core.partials import claimed
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.suites import Network, Suite
from msn_deploy.engine import pick_backend, what_machine
from msn_deploy.machine.environment import Environment, machine_name, read_environment
from msn_deploy.pipeline.bench import bench, read_result
from msn_deploy.pipeline.bench import write_json as write_result
from msn_deploy.pipeline.evaluate import evaluate
from msn_deploy.pipeline.forms import Form, Step, files_of, is_done, make, steps_for, steps_of
from msn_deploy.report.suite import SuiteArm, SuiteCase, SuiteIndex, markdown, suite_html

# What must be the same for an earlier result to count as one of this machine, in the state it is in now.
_MACHINE = ("machine", "cpu", "gpu", "cores_usable", "governor", "power_mode", "clocks_pinned", "versions")
# What the index takes over from the facts of each row.
_OF_FACTS = ("norm", "folded", "accuracy", "bytes", "graph", "sha256")
_FILE_S, _EPOCH_S = 5.0, 5.0  # about, for the ETA


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of `bench`: all rows of a network, in all precisions, at one batch."""

    suite: Suite
    network: Network
    batch: int

    @property
    def name(self) -> str:
        """Of its file, without .json."""
        return f"{self.network.name}-b{self.batch}"

    @property
    def forms(self) -> dict[str, Form]:
        """What is measured, by the name of its row; the first is the baseline."""
        suite, network = self.suite, self.network
        return {
            arm_name(row.name, precision): Form(
                recipe=network.recipe_of(row),
                fold=row.fold,
                precision=precision,
                batch=self.batch,
                opset=network.opset,
                engine=suite.provider == "engine",
                replicates=suite.replicates,
            )
            for precision in suite.precisions
            for row in network.rows
        }

    @property
    def options(self) -> MeasureOptions:
        """How it is measured."""
        suite = self.suite
        return MeasureOptions(
            seconds=self.network.seconds or suite.seconds,
            block_ms=suite.block_ms,
            warmup_seconds=suite.warmup_seconds,
            warmup_queries=suite.warmup_queries,
            max_queries=suite.max_queries,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a case. result: None if it could not be measured. invalid: why it must not be believed."""

    case: Case
    result: BenchResult | None
    invalid: str = ""


def arm_name(row: str, precision: str) -> str:
    """Return what a row is called in a result."""
    return f"{row}, {precision.upper()}"


def cases_of(suite: Suite) -> list[Case]:
    """Return the cases, network by network."""
    return [Case(suite=suite, network=network, batch=batch) for network in suite.networks for batch in suite.batches]


def default_out(suite: Suite) -> Path:
    """Return benchmarks/results/MACHINE/SUITE in a checkout, ./SUITE elsewhere."""
    results = builtin_folder("suites").parent / "results"
    return results / machine_name(read_environment()) / suite.name if results.is_dir() else Path(suite.name)


def plan_of(suite: Suite, out: Path, runs: Path | None) -> list[tuple[Step | Case, bool]]:
    """Return every step in order, and whether it is done; a case that is done needs none of its files."""
    found: dict[Path, tuple[Step | Case, bool]] = {}
    for case in cases_of(suite):
        finished = _finished(case, out, runs) is not None
        for step in steps_for(list(case.forms.values()), runs):
            before = found.get(step.out, (step, True))[1]
            found[step.out] = (step, before and (finished or is_done(step)))
        found[out / f"{case.name}.json"] = (case, finished)
    return list(found.values())


def run_suite(
    suite: Suite,
    out: Path,
    *,
    runs: Path | None = None,
    prepare: bool = False,
    tell: Callable[[str], None],
    progress: Progress = silent,
) -> list[Outcome]:
    """Do what the plan says is not done; `tell` gets a line before each step. Each finished case is a file in `out`.

    runs: folder of checkpoints, and of what is made from them; None is the cache. prepare: stop before the first
    engine, so that `runs` can be copied to a device without torch; nothing is measured then.
    An invalid case is kept and measured again by the next run. Raises MissingDevice or MissingDependency (exit 3)
    before any work if engines can't be run here, InputError (exit 2), and what the steps raise.
    """
    if suite.provider == "engine" and not prepare:
        _check_device()
    with claimed(out / "suite.json"):
        plan = [each for each, done in plan_of(suite, out, runs) if not done]
        if prepare:
            plan = [each for each in plan if isinstance(each, Step) and each.kind != "build"]
        spans = [_seconds(each) for each in plan]
        accuracies: dict[Path, float] = {}
        outcomes: dict[str, Outcome] = {}
        for at, each in enumerate(plan):
            inner = partial(_scaled, progress, sum(spans[:at]), spans[at], sum(spans))
            if isinstance(each, Step):
                if not is_done(each):  # its source may be new
                    tell(each.text)
                    make(each, threads=suite.threads, progress=inner)
                continue
            tell(f"measure {each.name}: {len(each.forms)} models, interleaved")
            outcomes[each.name] = _measured(each, out, runs, accuracies, inner)
        if prepare:
            return []
        for case in cases_of(suite):
            if case.name not in outcomes:
                outcomes[case.name] = Outcome(case=case, result=_finished(case, out, runs))
        return [outcomes[case.name] for case in cases_of(suite)]


def _check_device() -> None:
    """Refuse, before minutes of training, a machine that can't run engines."""
    pick_backend("auto", None)
    if not what_machine().has_gpu:
        raise MissingDevice(
            "this suite runs TensorRT engines, and this machine shows no NVIDIA GPU.\n"
            "Make the ONNX files here with `--prepare --runs runs`, copy `runs` to the device, and run the suite there."
        )


def _measured(
    case: Case, out: Path, runs: Path | None, accuracies: dict[Path, float], progress: Progress
) -> Outcome:  # fmt: skip
    last = {name: steps_of(form, runs)[-1] for name, form in case.forms.items()}
    models = [path for step in last.values() for path in files_of(step)]
    for step in last.values():
        if step.out not in accuracies:
            accuracies[step.out] = evaluate(step.out, data=step.form.data, threads=case.suite.threads).value
    provider = "cpu" if case.suite.provider == "engine" else case.suite.provider
    try:
        result = bench(
            models,
            data=next(iter(last.values())).form.data,
            provider=provider,
            batch=case.batch,
            threads=case.suite.threads,
            options=case.options,
            names={step.out: name for name, step in last.items()},
            accuracies=accuracies,
            progress=progress,
        )
    except InvalidMeasurement as cause:
        return Outcome(case=case, result=None, invalid=str(cause))
    write_result(result, out / f"{case.name}.json", models, config={"suite": case.suite.name, "key": _key(case, runs)})
    return Outcome(case=case, result=result, invalid="" if result.validity.valid else result.validity.message)


def _finished(case: Case, out: Path, runs: Path | None) -> BenchResult | None:
    """Return the result of a case if it is there, whole, valid, and made from what is there now."""
    path = out / f"{case.name}.json"
    key = _key(case, runs)
    try:
        sidecar = read_sidecar(path)
        if key is None or sidecar.config.get("key") != key or sidecar.sha256 != sha256_of(path):
            return None
        result = read_result(path)
    except InputError:  # not there, cut off, or of an earlier schema
        return None
    return result if result.validity.valid else None


def _key(case: Case, runs: Path | None) -> str | None:
    """Return a digest of what a result depends on; None if a checkpoint is not there."""
    trainings = {name: steps_of(form, runs)[0] for name, form in case.forms.items()}
    if not all(is_done(step) for step in trainings.values()):
        return None
    environment = read_environment().to_json()
    made_of: dict[str, Any] = {
        "network": asdict(case.network),
        "batch": case.batch,
        "precisions": list(case.suite.precisions),
        "provider": case.suite.provider,
        "threads": case.suite.threads,
        "replicates": case.suite.replicates,
        "options": asdict(case.options),
        "checkpoints": {name: sha256_of(step.out) for name, step in trainings.items()},
        "machine": {name: environment[name] for name in _MACHINE},
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _seconds(each: Step | Case) -> float:
    """Estimate how long a step takes; settling doubles the queries of slow models."""
    if isinstance(each, Case):
        return len(each.forms) * (2 * each.options.seconds + each.options.warmup_seconds)
    return _EPOCH_S * each.form.recipe.train.epochs if each.kind == "train" else _FILE_S


def _scaled(
    outer: Progress, before: float, span: float, whole: float, done: float, total: float, note: str = ""
) -> None:
    """Report a step's own progress as a part of the whole."""
    outer(before + span * done / (total or 1), whole, note)


def write_index(suite: Suite, outcomes: Sequence[Outcome], out: Path) -> SuiteIndex:
    """Write suite.json, suite.md and report.html of a suite into `out`, atomically, with sidecars; return the index."""
    index = index_of(suite, outcomes)
    measured = [each.case.name for each in outcomes if each.result is not None]
    parents = [parent_of(out / f"{name}.json", role="bench") for name in measured]
    page = suite_html(index)
    publish_together(
        *(
            Artifact(path=out / name, content=content, kind=kind, parents=parents)
            for name, kind, content in (
                ("suite.json", "suite", json_bytes(asdict(index))),
                ("suite.md", "suite-table", f"{markdown(index)}\n".encode(errors="backslashreplace")),
                ("report.html", "report", page.encode(errors="backslashreplace")),
            )
        )
    )
    return index


def index_of(suite: Suite, outcomes: Sequence[Outcome]) -> SuiteIndex:
    """Return what was found. Its environment is that of the first case that was measured."""
    measured = [each.result for each in outcomes if each.result is not None]
    environment = measured[0].environment if measured else Environment()
    return SuiteIndex(
        suite=suite.name,
        title=suite.title,
        machine=machine_name(environment),
        provider=suite.provider,
        threads=measured[0].profile.threads if measured else suite.threads,
        environment=environment,
        cases=tuple(
            SuiteCase(
                case=each.case.name,
                file=None if each.result is None else f"{each.case.name}.json",
                network=each.case.network.title or each.case.network.name,
                batch=each.case.batch,
                invalid=each.invalid,
                baseline="" if each.result is None else each.result.baseline,
                reference=each.case.network.reference,
                arms=() if each.result is None else tuple(_arms(suite, each.case.network, each.result)),
            )
            for each in outcomes
        ),
    )


def _arms(suite: Suite, network: Network, result: BenchResult) -> Iterator[SuiteArm]:
    arms = {arm.name: arm for arm in result.arms}
    ratios = _to_reference(arms, network.reference, suite.precisions)
    for precision, row in itertools.product(suite.precisions, network.rows):
        arm = arms[arm_name(row.name, precision)]
        other = arms.get(arm_name(network.reference, precision))
        facts: dict[str, Any] = {key: getattr(arm.facts, key) for key in _OF_FACTS}
        yield SuiteArm(
            name=arm.name,
            row=row.name,
            precision=precision,
            **facts,
            median_ms=arm.median_ms,
            p90_ms=arm.p90_ms,
            p99_ms=arm.p99_ms,
            ratio=arm.ratio,
            verdict=arm.verdict,
            ratio_interval=arm.ratio_interval,
            to_reference=ratios.get(arm.name),
            same_graph=arm.name in ratios and other is not None and arm.facts.same_graph(other.facts),
        )


def _to_reference(arms: dict[str, ArmResult], reference: str, precisions: Sequence[str]) -> dict[str, Ratio]:
    """Compare every arm with the reference in its own precision; p-values are for all of these comparisons together."""
    pairs: dict[str, Ratio] = {}
    for precision in precisions:
        other = arm_name(reference, precision)
        mine = [name for name in arms if name.endswith(arm_name("", precision)) and name != other]
        pairs |= {name: ratio_between(arms[name], arms[other]) for name in mine if other in arms}
    return dict(zip(pairs, holm(list(pairs.values())), strict=True)) if pairs else {}
