"""Every TensorRT name that the engine half uses exists in all releases that it serves, or is asked for first."""

from __future__ import annotations

from pathlib import Path

import pytest
from trt_api import FIXTURE, RELEASES, api, values
from trt_names import lacking, problems

import msn_deploy.engine

FOLDER = Path(msn_deploy.engine.__file__).parent
SOURCES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_name_is_used_that_a_release_lacks(path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("trt_build.py", "network.num_layers", "network.num_layer"),
        ("trt_build.py", "config.set_memory_pool_limit", "config.max_workspace_size"),
        ("trt_build.py", "trt.ProfilingVerbosity.DETAILED", "trt.ProfilingVerbosity.VERBOSE"),
        ("trt_build.py", 'hasattr(config, "set_compute_capability")', 'hasattr(config, "set_flag")'),
        ("trt_build.py", 'hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE")', 'hasattr(trt.BuilderFlag, "COMPATIBLE")'),
        ("dla.py", "builder.num_DLA_cores", "builder.platform_has_fast_int8"),
        ("inspector.py", '"device_memory_size_v2", None)', '"device_memory_size_v2")'),
        ("build_log.py", 'hasattr(trt, "IProgressMonitor")', 'hasattr(trt, "ILogger")'),
    ],
)
def test_the_names_in_use_are_seen_at_all(file, good, bad):
    """A checker that recognised nothing would find nothing: break the file and see."""
    source = (FOLDER / file).read_text(encoding="utf-8")
    assert good in source
    assert problems(source.replace(good, bad))


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "not in 11.0.0, 11.4.0, rtx-1.7.1"),
        ("kinds = trt.NetworkDefinitionCreationFlag\nkinds.EXPLICIT_BATCH", "kinds.EXPLICIT_BATCH: not in 11.0.0"),
        ("size = self._engine.device_memory_size_v2", "not in 8.6.1, 10.0.1"),
        ("x = trt.Runtime(log)\nx.get_engine_validity", "not in 8.6.1"),
        ("builder.create_network(0).has_implicit_batch_dimension", "not in rtx-1.7.1"),
        ("parser.get_error(0).node_name()", "not in 8.6.1"),
        ("config.progress_monitor = m", "not in 8.6.1"),
        ("getattr(config, 'int8_calibrator')", "not in 11.0.0"),
        ("getattr(trt.BuilderFlag, flag)", "nobody asked"),
        ("thing.num_compute_capabilities = 1", "a TensorRT name that some releases lack"),
        ("context.run_fast()", "no release has IExecutionContext.run_fast"),
        ("hasattr(config, 'progress_monitr')", "no release has IBuilderConfig.progress_monitr"),
        ("mask(trt.BuilderFlag, 'GPU_FALBACK')", "no release has BuilderFlag.GPU_FALBACK"),
        ("if hasattr(trt, 'IProgressMonitor'):\n  pass\nelse:\n  trt.IProgressMonitor", "not in 8.6.1"),
        ("if hasattr(trt, 'IProgressMonitor') or quick:\n  trt.IProgressMonitor", "not in 8.6.1"),
        ("if not hasattr(trt, 'IProgressMonitor'):\n  log()\ntrt.IProgressMonitor", "not in 8.6.1"),
        ("if hasattr(config, 'progress_monitor'):\n  other.progress_monitor", "other.progress_monitor"),
    ],
)
def test_an_unguarded_name_is_found(code, complaint):
    found = problems(f"import trt\ntrt.Builder\n{code}\n")
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith(f"line {len(code.splitlines()) + 2}")


@pytest.mark.parametrize(
    "code",
    [
        "config.set_flag(trt.BuilderFlag.GPU_FALLBACK)",
        "if hasattr(config, 'progress_monitor'):\n  config.progress_monitor = m",
        "if ready and hasattr(trt, 'IProgressMonitor'):\n  trt.IProgressMonitor",
        "x = hasattr(trt, 'IProgressMonitor') and trt.IProgressMonitor",
        "x = not hasattr(trt, 'IProgressMonitor') or trt.IProgressMonitor",
        "x = trt.IProgressMonitor if hasattr(trt, 'IProgressMonitor') else None",
        "x = [getattr(flags, name) for name in names if hasattr(flags, name)]",
        "def f():\n  if not hasattr(trt, 'IProgressMonitor'):\n    return\n  class M(trt.IProgressMonitor):\n    pass",
        "getattr(engine, 'device_memory_size_v2', None)",
        "self.progress_monitor = 1",
    ],
)
def test_what_is_asked_for_first_passes(code):
    assert problems(f"import trt\ntrt.Builder\n{code}\n") == []


def test_files_without_tensorrt_may_use_its_words():
    assert problems("network.frobnicate\ncontext.pop()\nerror.strerror") == []


def test_the_traps_between_releases_are_in_the_fixture():
    assert lacking("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") == ("8.6.1",)
    assert lacking("BuilderFlag", "FP16") == ("11.0.0", "11.4.0", "rtx-1.7.1")
    assert lacking("ICudaEngine", "num_bindings") == RELEASES[1:]
    assert lacking("", "ComputeCapability") == RELEASES[:-1]
    bits = {release: values(release, "NetworkDefinitionCreationFlag") for release in RELEASES}
    assert [each.get("STRONGLY_TYPED") for each in bits.values()] == [None, 1, 1, 1, 1, 0, 0, 0]
    assert FIXTURE.stat().st_size < 60_000
    assert all(len(api()[release]) > 100 for release in RELEASES)
