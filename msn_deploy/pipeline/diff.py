"""`diff`: where do two files begin to differ, tensor by tensor, and which layers add most to it?

A tensor's difference has two parts: what came in, and what its own layer adds. The second is measured by itself: every
layer of the model is run on what the reference's layers read. So an error is named where it is made, not where it has
grown large, and INT8 is told apart from a fault.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from msn_deploy.core.artifacts import parent_of, publish
from msn_deploy.core.errors import InputError
from msn_deploy.core.progress import Progress, silent
from msn_deploy.core.results import Result
from msn_deploy.engine import Runner, open_runnable, runner_of
from msn_deploy.engine.load import Opened
from msn_deploy.engine.ort import run_on_one_thread
from msn_deploy.model.feeds import Array, Feeds
from msn_deploy.model.opened import OpenModel, open_model
from msn_deploy.model.parity import FLOAT_LIMIT, LEAST_LARGEST, LEAST_SQNR_DB
from msn_deploy.pipeline.bench_inputs import batch_of, inputs_of
from msn_deploy.pipeline.models import onnx_of
from msn_deploy.report.curves import CURVE_VERSIONS, line_chart
from msn_deploy.report.plots import Panel

_LOG = logging.getLogger(__name__)
DEFAULT_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor of the model against the reference's, over all samples.

    sqnr_db: power of the reference over power of the difference; infinite where they are equal. cosine: of all numbers
    as one vector. worst: largest absolute difference. largest: of the reference's magnitudes.
    """

    sqnr_db: float
    cosine: float
    worst: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """A tensor that both files have. layer, operator: of the reference. by: what it was found by.

    total: with all that came in from the layers before. own: what the layer adds by itself, reading what the reference
    reads; None where it can't be run by itself. off: further away than its precision explains.
    """

    tensor: str
    model_tensor: str
    layer: str
    operator: str
    by: Literal["name", "position"]
    total: Difference
    own: Difference | None
    off: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiffReport(Result):
    """Two files, compared.

    outputs: of the files as they are. tensors: in the order of the reference; none for an engine whose ONNX file is not
    beside it. unmatched: tensors of the reference that the model does not have. inside: the file whose inside was
    looked at: of an engine, the ONNX file that it was built from. limit: what counts as off, in words.
    disturbed_db: SQNR of the model's outputs as they are against those with every tensor an output, which keeps a
    runtime from fusing; infinite where that changes nothing.
    """

    model: str
    reference: str
    samples: int
    data: str
    outputs: dict[str, Difference]
    tensors: tuple[TensorDifference, ...]
    unmatched: tuple[str, ...]
    inside: str
    limit: str
    disturbed_db: float

    @property
    def first_off(self) -> TensorDifference | None:
        """The first tensor that is off, in the order of the reference."""
        return next((each for each in self.tensors if each.off), None)

    @property
    def worst(self) -> list[TensorDifference]:
        """The tensors whose layers add most, the worst first; those that add nothing left out."""
        adding = [each for each in self.tensors if _added(each).sqnr_db < math.inf]
        return sorted(adding, key=lambda each: _added(each).sqnr_db)


def _added(each: TensorDifference) -> Difference:
    return each.own or each.total


@dataclass(slots=True)
class _Tally:
    """Sums over samples; float64."""

    signal: float = 0.0
    other: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    worst: float = 0.0
    largest: float = 0.0

    def add(self, truth: Array, given: Array) -> None:
        a, b = truth.astype(np.float64).ravel(), given.astype(np.float64).ravel()
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.nan_to_num(np.abs(a - b), nan=np.inf)
            self.signal += float(a @ a)
            self.other += float(b @ b)
            self.dot += float(a @ b)
            self.noise += float(apart @ apart)
        self.worst = max(self.worst, float(apart.max(initial=0)))
        self.largest = max(self.largest, float(np.abs(a).max(initial=0)))

    def difference(self) -> Difference:
        sqnr = math.inf if not self.noise else -math.inf
        if self.noise and self.signal and math.isfinite(self.noise):
            sqnr = 10 * math.log10(self.signal / self.noise)
        both = math.sqrt(self.signal * self.other)
        cosine = self.dot / both if both and math.isfinite(self.dot / both) else float(not self.noise)
        return Difference(sqnr_db=sqnr, cosine=cosine, worst=self.worst, largest=self.largest)


def diff(
    model: str | Path,
    reference: str | Path,
    *,
    data: str | None = None,
    samples: int = DEFAULT_SAMPLES,
    trust: bool = False,
    plugins: Sequence[Path] = (),
    progress: Progress = silent,
) -> DiffReport:
    """Compare a model with a reference, tensor by tensor, on images or feeds.

    The outputs of both files as they are come first. An engine shows nothing else: of its inside, the ONNX file that it
    was built from is compared, if that is next to it.

    Args:
        model: An ONNX file or an engine.
        reference: The ONNX file that it should be equal to, such as the FP32 file of an INT8 one.
        data: As for `bench`; None takes the test images of what the reference was trained on, or random numbers.
        samples: How many runs, at most 64.
        trust: Load an engine from elsewhere.
        plugins: Libraries with operators that an engine needs.
        progress: Told how far it is.

    Raises:
        InputError: Files that cannot be used or do not take the same inputs (exit 2).
        MissingDependency, MissingDevice: What is not here (exit 3).

    Examples:
        >>> import msn_deploy
        >>> report = msn_deploy.diff("runs/cnn3_msn.int8.onnx", "runs/cnn3_msn.onnx", samples=2)
        >>> len(report.outputs)
        1
    """
    truth = open_model(Path(reference), step="diff")
    given = open_runnable(Path(model), trust=trust, plugins=plugins)
    runner = runner_of(given, threads=1) if isinstance(given, OpenModel) else runner_of(given)
    wanted = run_on_one_thread(truth.proto)
    wanted.info = truth.info
    fed = inputs_of(wanted, batch=batch_of([runner, wanted], None), data=data)
    runs = fed.feeds[:samples]
    renamed = _input_names(runner, truth)
    outputs, whole = _compare_outputs(runner, wanted, truth.path, runs, renamed)
    inside = _inside(given)
    tensors: tuple[TensorDifference, ...] = ()
    unmatched: tuple[str, ...] = ()
    disturbed = math.inf
    limit = "nothing was looked at inside"
    if inside is not None:
        found = _Inside(inside, truth)
        tensors, disturbed = found.measured(runs, renamed, whole if inside is given else None, progress)
        unmatched, limit = found.unmatched, found.limit_in_words
    return DiffReport(
        model=str(model),
        reference=str(reference),
        samples=len(runs),
        data="random numbers" if fed.images is None else fed.images.file,
        outputs=outputs,
        tensors=tensors,
        unmatched=unmatched,
        inside="" if inside is None else str(inside.path),
        limit=limit,
        disturbed_db=disturbed,
    )


def write_plot(report: DiffReport, out: Path) -> None:
    """Draw what comes in and what each layer adds, along the network, as an SVG or PNG file with a sidecar.

    Raises InputError for a name that ends in something else; MissingDependency.
    """
    kind = plot_kind(out)
    lines = {
        name: [(at, found.sqnr_db) for at, found in enumerate(each) if found is not None and _drawn(found)]
        for name, each in (
            ("all that came in", [tensor.total for tensor in report.tensors]),
            ("the layer by itself", [tensor.own for tensor in report.tensors]),
        )
    }
    title = f"{Path(report.model).name} against {Path(report.reference).name}"
    panel = Panel(title=title, x="tensor, in the order of the reference", y="SQNR, dB", lines=lines)
    picture = line_chart([panel], kind=kind)
    publish(
        out,
        lambda partial: partial.write_bytes(picture),
        kind="curves",
        parents=[parent_of(Path(each), role="subject") for each in (report.model, report.reference)],
        versions=CURVE_VERSIONS,
        config={"samples": report.samples, "data": report.data},
    )


def plot_kind(out: Path) -> Literal["png", "svg"]:
    """Return what kind of picture a name asks for. Raises InputError."""
    kinds: dict[str, Literal["png", "svg"]] = {".png": "png", ".svg": "svg"}
    if out.suffix.lower() not in kinds:
        raise InputError(f"{out} does not end in .svg or .png.\nName the picture so.")
    return kinds[out.suffix.lower()]


def _drawn(found: Difference) -> bool:
    return math.isfinite(found.sqnr_db)


def _inside(given: Opened) -> OpenModel | None:
    """Return the ONNX file whose inside is that of a model; None for an engine that was parted from its own."""
    if isinstance(given, OpenModel):
        return given
    source = onnx_of(given.path)
    if source is None:
        _LOG.warning(
            "%s: the ONNX file that it was built from is not beside it; its outputs alone are compared", given.path
        )
        return None
    return open_model(source, step="diff")


def _input_names(runner: Runner, truth: OpenModel) -> dict[str, str]:
    """Return what the model calls each input of the reference. Raises InputError where they do not pair up."""
    names = [spec.name for spec in runner.inputs]
    if len(names) != len(truth.inputs):
        raise InputError(
            f"{runner.path} takes {len(names)} inputs ({', '.join(names)}), {truth.path} {len(truth.inputs)}.\n"
            "Compare files of the same network."
        )
    left = iter([name for name in names if name not in {spec.name for spec in truth.inputs}])
    return {spec.name: spec.name if spec.name in names else next(left) for spec in truth.inputs}


def _compare_outputs(
    runner: Runner, reference: Runner, path: Path, runs: Iterable[Feeds], renamed: Mapping[str, str]
) -> tuple[dict[str, Difference], list[dict[str, Array]]]:
    """Compare both files as they are; return also what the model made of each run."""
    tallies, whole = dict[str, _Tally](), list[dict[str, Array]]()
    for feeds in runs:
        wanted = reference.run(feeds)
        made = runner.run({renamed[name]: array for name, array in feeds.items()})
        whole.append(made)
        for (name, array), (other, twin) in zip(wanted.items(), _in_order(made, wanted), strict=True):
            if array.shape != twin.shape:
                raise InputError(
                    f"{runner.path} makes {other} of shape {twin.shape}; {path} makes {name} of {array.shape}.\n"
                    "Compare files of the same network."
                )
            tallies.setdefault(name, _Tally()).add(array, twin)
    runner.close()
    reference.close()
    return {name: tally.difference() for name, tally in tallies.items()}, whole


def _in_order(made: Mapping[str, Array], wanted: Mapping[str, Array]) -> list[tuple[str, Array]]:
    """Return what was made in the order of what was wanted: by name, else as they come."""
    if len(made) != len(wanted):
        raise InputError(f"one file has {len(made)} outputs, the other {len(wanted)}: compare files of one network.")
    if set(made) == set(wanted):
        return [(name, made[name]) for name in wanted]
    return list(made.items())


class _Inside:
    """Two graphs whose tensors are paired, and what is run to compare them."""

    def __init__(self, model: OpenModel, truth: OpenModel) -> None:
        from msn_deploy.model.graphs import with_outputs
        from msn_deploy.model.matching import cut_at, float_types, match

        pairs = match(model.proto, truth.proto)
        types, wanted = float_types(model.proto), float_types(truth.proto)
        self.pairs = [each for each in pairs if each.model in types and each.reference in wanted]
        known = {each.reference for each in self.pairs}
        made = {name for node in truth.proto.graph.node for name in node.output}
        self.unmatched = tuple(name for name in wanted if name in made and name not in known)
        names = [each.model for each in self.pairs]
        self.types = {name: types[name] for name in names}
        self.reference = run_on_one_thread(with_outputs(truth.proto, [each.reference for each in self.pairs]))
        outputs = [spec.name for spec in model.outputs]
        self.model = run_on_one_thread(with_outputs(model.proto, dict.fromkeys([*names, *outputs])))
        self.own = run_on_one_thread(cut_at(with_outputs(model.proto, names), self.types))
        kinds = {model.precision, truth.precision}
        self.least_db = None if len(kinds) == 1 else min(LEAST_SQNR_DB[kind] for kind in kinds if kind in LEAST_SQNR_DB)

    @property
    def limit_in_words(self) -> str:
        if self.least_db is None:
            return f"a layer that adds more than {FLOAT_LIMIT:g} of its largest value"
        return f"a layer by itself below {self.least_db:g} dB"

    def measured(
        self,
        runs: Sequence[Feeds],
        renamed: Mapping[str, str],
        whole: Sequence[Mapping[str, Array]] | None,
        progress: Progress,
    ) -> tuple[tuple[TensorDifference, ...], float]:
        """Return the tensors in order, and how far the model's outputs moved since its tensors were made outputs."""
        total = {each.reference: _Tally() for each in self.pairs}
        own = {each.reference: _Tally() for each in self.pairs}
        moved = _Tally()
        for done, feeds in enumerate(runs):
            progress(done, len(runs), "comparing")
            given = {renamed[name]: array for name, array in feeds.items()}
            wanted, made = self.reference.run(feeds), self.model.run(given)
            alone = self.own.run(self._given(given, wanted))
            for each in self.pairs:
                truth = wanted[each.reference]
                for tallies, values in ((total, made), (own, alone)):
                    value = values[each.model]
                    if value.shape == truth.shape:
                        tallies[each.reference].add(truth, value)
                    else:
                        tallies[each.reference].noise = math.inf
            if whole is not None:
                for name, array in whole[done].items():
                    moved.add(array, made[name])
        progress(len(runs), len(runs), "compared")
        for runner in (self.reference, self.model, self.own):
            runner.close()
        return tuple(self._told(each, total, own) for each in self.pairs), moved.difference().sqnr_db

    def _given(self, feeds: Mapping[str, Array], wanted: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """Return what each layer of the model reads if the reference made it."""
        takes = {spec.name: spec.dtype for spec in self.own.inputs}
        found = {name: array for name, array in feeds.items() if name in takes}
        for each in self.pairs:
            name = f"{each.model}_given"
            if name in takes:
                found[name] = wanted[each.reference].astype(takes[name])
        return found

    def _told(self, each: Any, total: Mapping[str, _Tally], own: Mapping[str, _Tally]) -> TensorDifference:
        added = own[each.reference].difference()
        if self.least_db is None:
            off = not added.worst <= FLOAT_LIMIT * max(LEAST_LARGEST, added.largest)
        else:
            off = not added.sqnr_db >= self.least_db
        return TensorDifference(
            tensor=each.reference,
            model_tensor=each.model,
            layer=each.layer,
            operator=each.operator,
            by=each.by,
            total=total[each.reference].difference(),
            own=added,
            off=off,
        )
