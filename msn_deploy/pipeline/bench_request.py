"""What is asked of a benchmark: which files are its rows, what runs each, and how they are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from msn_deploy.core.errors import InputError

if TYPE_CHECKING:
    from msn_deploy.bench import MeasureOptions
    from msn_deploy.engine.cuda import Wait
    from msn_deploy.engine.tensors import InputShapes

_REPLICATE = re.compile(r"(.+)\.r\d+\.engine")


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure. Its defaults are those of the command line."""

    models: Sequence[Path]
    """ONNX files, engines and checkpoints. X.r2.engine, X.r3.engine, ... beside X.engine are further builds of its
    row."""
    baseline: Path | None = None
    """What the others are compared with; None: the first of `models`."""
    provider: str = "cpu"
    """Of ONNX files, one of PROVIDERS; a checkpoint runs in torch on the same device."""
    compiled: bool = False
    """Run each checkpoint by torch.compile too, as a row of its own."""
    batch: int | None = None
    """Rows of a query, such as images; None: what the files fix, else 1."""
    data: str | None = None
    """Images, or feeds for all inputs; None: what each model was trained on, else random numbers."""
    shapes: Sequence[InputShapes] = ()
    """One shape for each input that leaves more than its batch open."""
    threads: int | None = None
    """None: every core that this process may use."""
    profile: str = "single-stream"
    """One that `bench.profile.preset` takes."""
    streams: int | None = None
    """Queries in flight at a time, with a profile that measures rates; None: as the profile says."""
    cuda_graph: bool = False
    """Replay each engine's network from a CUDA graph. All models have to be engines."""
    wait: Wait | None = None
    """How engines wait for the GPU; None: as the profile says."""
    mapped: bool = False
    """Run each engine on mapped buffers (zero-copy) too, as a row of its own."""
    builds: int = 1
    """How many times each model is loaded, so that one lucky load does not decide."""
    soak_s: float | None = None
    """Afterwards, keep each model under load for that long."""
    energy: bool = False
    """Measure the energy per query too."""
    layers: bool = False
    """Time each model's layers too, when all is measured."""
    trust: bool = False
    """Load engines that were built elsewhere."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Output -> input that takes it in the next query; it starts from zeros with every pass of the data."""
    plugins: Sequence[Path] = ()
    """Libraries with operators that the engines need. All models have to be engines."""
    options: MeasureOptions | None = None
    """How long to measure, and in which blocks; None: as MeasureOptions says."""
    names: Mapping[Path, str] = field(default_factory=dict)
    """Of the rows; a file name without its suffix where there is none."""
    accuracies: Mapping[Path, float] = field(default_factory=dict)
    """0 to 1, of the models where it is known."""

    def __post_init__(self) -> None:
        if self.builds < 1:
            raise InputError(f"{self.builds} builds cannot be measured.\nGive `--builds` 1 or more.")
        other = next((path for path in self.files if path.suffix.lower() != ".engine"), None)
        self._check_profile(other)
        if self.plugins and other is not None:
            raise InputError(f"--plugins gives TensorRT operators; {other} is not an engine.\nLeave it out.")
        if self.cuda_graph and other is not None:
            raise InputError(
                f"--cuda-graph is for engines, which TensorRT replays; {other} is not an engine.\n"
                "Leave it out, or build one with `msn-deploy build-engine`."
            )
        if not any(path.suffix.lower() == ".engine" for path in self.files):
            for given, option in ((self.wait, "--wait"), (self.mapped, "--mapped")):
                if given:
                    raise InputError(
                        f"{option} is for engines, and none is among the models.\nAdd one, or leave it out."
                    )

    def _check_profile(self, other: Path | None) -> None:
        """Refuse what does not go with the profile; other: a file that is not an engine."""
        from msn_deploy.bench.profile import preset_of  # late: the command line asks for defaults alone

        chosen = preset_of(self.profile)
        if chosen.measures != "rate":
            if self.streams is not None:
                raise InputError(
                    f"--streams keeps several queries in flight, and profile {self.profile} measures one at a time.\n"
                    "Add `--profile throughput`, or leave it out."
                )
        else:
            for given, option in ((self.layers, "--layers"), (self.state, "--state"), (self.compiled, "--compile")):
                if given:
                    raise InputError(
                        f"{option} is for one query at a time, and profile {self.profile} keeps several in flight.\n"
                        "Leave one out."
                    )
        if chosen.engines_only and other is not None:
            raise InputError(
                f"profile {self.profile} is measured as trtexec measures engines; {other} is not one.\n"
                "Build one with `msn-deploy build-engine`, or use `--profile throughput`."
            )
        if self.soak_s is not None and chosen.measures != "rate":
            raise InputError(
                f"--soak keeps queries in flight, and profile {self.profile} measures one at a time.\n"
                "Add `--profile throughput`, or leave it out."
            )

    @property
    def files(self) -> list[Path]:
        """All files that are measured, the baseline first."""
        return list(dict.fromkeys([*([self.baseline] if self.baseline is not None else []), *self.models]))

    def further_builds(self) -> dict[Path, list[Path]]:
        """Return the replicates, as `build-engine` names them, of the files that have some."""
        further: dict[Path, list[Path]] = {}
        for path in self.files:
            replicate = _REPLICATE.fullmatch(path.name)
            if replicate and (first := path.with_name(f"{replicate[1]}.engine")) in self.files:
                further.setdefault(first, []).append(path)
        return further

    def rows(self) -> dict[str, tuple[Path, str]]:
        """Return by name of the row: which file, run by what, as the timing profile calls it. Raises InputError."""
        replicates = {path for each in self.further_builds().values() for path in each}
        paths = [path for path in self.files if path not in replicates]
        named = {path: self.names.get(path, path.name.removesuffix(path.suffix)) for path in paths}
        if len(set(named.values())) < len(paths):
            named = {path: str(path) for path in paths}
        rows = {}
        for path, name in named.items():
            if path.suffix.lower() == ".engine":
                rows[name] = (path, "engine")
                if self.mapped:
                    rows[f"{name} mapped"] = (path, "engine-mapped")
                continue
            if path.suffix.lower() != ".safetensors":
                rows[name] = (path, self.provider)
                continue
            rows[name] = (path, torch_provider(self.provider, compiled=False))
            if self.compiled:
                rows[f"{name} compiled"] = (path, torch_provider(self.provider, compiled=True))
        if self.compiled and all(path.suffix.lower() != ".safetensors" for path in paths):
            raise InputError("--compile is for checkpoints, and none is among the models.\nAdd one, or leave it out.")
        return rows


def torch_provider(provider: str, *, compiled: bool) -> str:
    """Return what a timing profile calls torch on the device of a provider: "torch", "torch-cuda-compile", ...

    Raises InputError for a provider that is not a device of torch's.
    """
    if provider not in ("cpu", "cuda"):
        raise InputError(f"a checkpoint runs in torch, on cpu or cuda, not on {provider}.\nExport it first.")
    return f"torch{'-cuda' * (provider == 'cuda')}{'-compile' * compiled}"
