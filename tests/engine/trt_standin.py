"""Stand-ins for the TensorRT module of each release: they have exactly the names that the release has.

Asking for a name that it lacks, or setting one, raises AttributeError, as the real bindings do. Every call and every
setting is written down. What they answer is made up; only which of their names are used is tested with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from trt_api import MODULE, api, values

from msn_deploy.engine import Backend

INSPECTED = """{"Layers": [
 {"Name": "conv0", "LayerType": "CaskConvolution", "Inputs": [{"Name": "x",
  "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}], "ParameterType": "Convolution"},
 {"Name": "gap0", "LayerType": "CaskPooling", "Inputs": [{"Name": "c", "Datatype": "Half"}]}]}"""


class StandIn:
    """One object of a TensorRT class, limited to the names that the class has in the release."""

    def __init__(self, kind: str, names: frozenset[str], answers: dict[str, Any], calls: list[Any]) -> None:
        self.__dict__.update(_kind=kind, _names=names, _answers=answers, _calls=calls)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._names:
            raise AttributeError(f"this release has no {self._kind}.{name}")
        if name not in self._answers:
            raise NotImplementedError(f"the stand-in of {self._kind} was not taught {name}")
        answer = self._answers[name]
        return self._written(name, answer) if callable(answer) and not isinstance(answer, type) else answer

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"this release has no {self._kind}.{name}")
        self._calls.append((name, value))
        self._answers[name] = value

    def _written(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._calls.append((name, *args))
            return answer(*args)

        return call


class Release:
    """A stand-in `module` of one release and the `calls` that were made to it.

    plan: what the builder returns, None for a failed build. dla_cores: that it finds. on_dla: answers
    `can_run_on_DLA(layer)`. layers: of the parsed network, as (name, type). inputs, outputs: its tensors, as
    name -> (type, shape). sizes: the input whose values are sizes. refuse: the builder cannot start, for this
    reason. fits: whether a timing cache is taken. error: what the parser found, as (node index, name, operator, text).
    """

    def __init__(
        self,
        release: str,
        *,
        plan: bytes | None = b"plan",
        dla_cores: int = 0,
        on_dla: Callable[[Any], bool] = lambda layer: True,
        layers: tuple[tuple[str, str], ...] = (("conv0", "CONVOLUTION"), ("act0", "ACTIVATION")),
        inputs: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
        outputs: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
        sizes: str = "",
        refuse: str = "",
        fits: bool = True,
        building: Callable[[], object] = lambda: None,
        error: tuple[int, str, str, str] | None = None,
    ) -> None:
        self.release, self.names, self.calls = release, api()[release], []
        self._plan, self._building = plan, building
        bits = values(release, "NetworkDefinitionCreationFlag")  # of those a mask is made
        rows = [SimpleNamespace(name=name, type=SimpleNamespace(name=kind)) for name, kind in layers]
        given, made = (
            [
                self.of(
                    "ITensor", name=name, dtype=SimpleNamespace(name=kind), shape=shape, is_shape_tensor=name == sizes
                )
                for name, (kind, shape) in tensors.items()
            ]
            for tensors in (inputs or {"x": ("FLOAT", (1, 3, 8, 8))}, outputs or {"logits": ("FLOAT", (1, 5))})
        )
        found = self.of("ParserError", **_error(error)) if error else None
        profile = self.of("IOptimizationProfile", set_shape=lambda name, *shapes: None)
        timing = self.of("ITimingCache", serialize=lambda: b"filled")
        config = self.of(
            "IBuilderConfig",
            set_memory_pool_limit=lambda pool, size: None,
            set_flag=lambda flag: None,
            set_compute_capability=lambda capability, at: True,
            add_optimization_profile=lambda profile: 0,
            set_calibration_profile=lambda profile: True,
            create_timing_cache=lambda content: timing,
            set_timing_cache=lambda cache, ignore_mismatch: fits,
            get_timing_cache=lambda: timing,
            can_run_on_DLA=on_dla,
            **dict.fromkeys(("builder_optimization_level", "hardware_compatibility_level", "progress_monitor")),
            num_compute_capabilities=0,
            int8_calibrator=None,
        )
        network = self.of(
            "INetworkDefinition",
            num_layers=len(rows),
            num_inputs=len(given),
            get_input=lambda at: given[at],
            num_outputs=len(made),
            get_output=lambda at: made[at],
            get_layer=lambda at: rows[at],
        )
        builder = self.of(
            "Builder",
            num_DLA_cores=dla_cores,
            create_network=lambda flags: network,
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=self._build,
        )
        parser = self.of(
            "OnnxParser",
            num_errors=int(error is not None),
            parse=lambda content: error is None,
            get_error=lambda at: found,
            set_flag=lambda flag: None,
        )
        engine = self.of(
            "ICudaEngine",
            create_engine_inspector=lambda: self.of("EngineInspector", get_engine_information=lambda form: INSPECTED),
            device_memory_size=4096,
            device_memory_size_v2=8192,
        )
        runtime = self.of("Runtime", deserialize_cuda_engine=lambda plan: engine, engine_host_code_allowed=False)

        def start(logger: Any) -> Any:
            self.logger = logger
            if refuse:
                logger.log(1, refuse)
                raise TypeError("factory function returned nullptr")
            return builder

        enums = {
            name: self.of(name, **{member: bits.get(member, f"{name}.{member}") for member in members})
            for name, members in self.names.items()
            if name and members and all(member.isupper() for member in members)
        }
        empty = {"__init__": lambda self: None}
        self.module = self.of(
            MODULE,
            **enums,
            ILogger=type("ILogger", (), empty),
            IProgressMonitor=type("IProgressMonitor", (), empty),
            IInt8EntropyCalibrator2=type("IInt8EntropyCalibrator2", (), empty),
            Builder=start,
            OnnxParser=lambda network, logger: parser,
            Runtime=lambda logger: runtime,
            INetworkDefinition=self.of("INetworkDefinition", **dict.fromkeys(("add_plugin_v2", "add_plugin_v3"))),
            init_libnvinfer_plugins=lambda logger, namespace: True,
        )
        self.module.__dict__["__version__"] = release.removeprefix("rtx-")

    @property
    def backend(self) -> Backend:
        """The stand-in as the builder takes it."""
        name = "tensorrt-rtx" if self.release.startswith("rtx") else "tensorrt"
        return Backend(name=name, module=self.module, version=self.module.__version__)

    def of(self, kind: str, **answers: Any) -> StandIn:
        """Make an object of a class."""
        return StandIn(kind, self.names.get(kind, frozenset()), answers, self.calls)

    def called(self, name: str) -> list[Any]:
        """Return the last argument of every call of that name."""
        return [call[-1] for call in self.calls if call[0] == name]

    def _build(self, network: Any, config: Any) -> Any:
        self._building()
        if self._plan is None:
            self.logger.log(1, "Error Code 2: out of workspace (. In foo at /x/y.cpp:3)")
            return None
        return memoryview(self._plan)


def _error(error: tuple[int, str, str, str]) -> dict[str, Any]:
    at, name, operator, text = error
    return {
        "node": lambda: at,
        "node_name": lambda: name,
        "node_operator": lambda: operator,
        "desc": lambda: text,
    }
