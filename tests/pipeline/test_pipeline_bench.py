"""`bench` of files and checkpoints: what runs a row, what its facts say, which files are builds of one row."""

import shutil
import sys

import numpy as np
import pytest

from msn_deploy.bench import MeasureOptions
from msn_deploy.bench.gate import judge_regression
from msn_deploy.bench.profile import preset
from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice, NotComparable
from msn_deploy.engine import OrtRunner, run_images
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.bench import bench
from msn_deploy.pipeline.bench_request import torch_provider
from msn_deploy.pipeline.evaluate import open_image_model
from msn_deploy.pipeline.export import export_onnx
from msn_deploy.training.runner import TorchRunner

pytestmark = pytest.mark.slow

QUICK = MeasureOptions(seconds=0.2, block_ms=1, warmup_seconds=0, warmup_queries=2)


@pytest.fixture(scope="module")
def onnx(checkpoint):
    """The same network, exported, for any batch."""
    path = checkpoint.with_name("folded.onnx")
    export_onnx(str(checkpoint), path, dynamic_batch=True)
    return path


def test_facts_hold_what_the_report_plots(onnx):
    (arm,) = bench([onnx], threads=1, options=QUICK, accuracies={onnx: 0.875}).arms
    assert (arm.facts.accuracy, arm.facts.bytes) == (0.875, onnx.stat().st_size)
    (arm,) = bench([onnx], threads=1, options=QUICK).arms
    assert arm.facts.accuracy is None


def test_replicates_are_builds_of_one_row(onnx, tmp_path, monkeypatch):
    """As `build-engine --replicates` names them; a device runs the engines, ONNX Runtime stands in for it."""
    loaded = []

    def opened(path, *, trust, plugins):
        loaded.append(path.name)
        return open_model(onnx, step="test")

    monkeypatch.setattr("msn_deploy.pipeline.models.open_runnable", opened)
    monkeypatch.setattr("msn_deploy.pipeline.models.runner_of", lambda model, **options: OrtRunner(model, threads=1))
    files = [shutil.copy(onnx, tmp_path / f"{name}.engine") for name in ("a", "a.r2", "b.r2", "b", "lone.r3")]
    result = bench(files[:4], threads=1, options=QUICK)
    assert [(arm.name, arm.builds) for arm in result.arms] == [("a", 2), ("b", 2)]
    assert sorted(loaded) == ["a.engine", "a.r2.engine", "b.engine", "b.r2.engine"]
    loaded.clear()
    mapped = bench(files[:2], threads=1, options=QUICK, mapped=True)
    assert [(arm.name, arm.builds) for arm in mapped.arms] == [("a", 2), ("a mapped", 2)]
    assert sorted(loaded) == ["a.engine", "a.r2.engine"]  # each is opened once for both rows
    assert [arm.name for arm in bench([files[0], files[4]], threads=1, options=QUICK).arms] == ["a", "lone.r3"]
    with pytest.raises(InputError, match="equal numbers of builds"):
        bench(files[:2] + files[3:4], threads=1, options=QUICK)


def test_a_checkpoint_runs_in_torch_beside_its_onnx_file(checkpoint, onnx):
    result = bench([checkpoint, onnx], threads=1, batch=3, options=QUICK)
    torch_arm, onnx_arm = result.arms
    assert (result.baseline, result.profile.provider, result.profile.h2d) == ("net", "cpu and torch", None)
    assert (torch_arm.facts.provider, torch_arm.facts.runtime_norm_fusions) == ("torch", "off")
    assert (onnx_arm.facts.provider, onnx_arm.facts.runtime_norm_fusions) == ("cpu", "on")
    assert torch_arm.facts.images == onnx_arm.facts.images is not None
    with pytest.raises(NotComparable, match="provider cpu against cpu and torch"):
        judge_regression(bench([onnx], threads=1, batch=3, options=QUICK), result, limit=0.03, source="base.json")


def test_a_compiled_checkpoint_is_a_row_of_its_own_and_compiled_before_it_is_timed(checkpoint, monkeypatch):
    compiled_with = []
    compile_it = TorchRunner._compile

    def watched(self, shape):
        compiled_with.append((shape, self.path))
        monkeypatch.setattr(self._torch, "compile", lambda model, dynamic: torch_compile(model, backend="eager"))
        compile_it(self, shape)

    import torch

    torch_compile = torch.compile
    monkeypatch.setattr(TorchRunner, "_compile", watched)
    result = bench([checkpoint], compiled=True, threads=1, batch=2, options=QUICK)
    assert [arm.name for arm in result.arms] == ["net", "net compiled"]
    assert [arm.facts.provider for arm in result.arms] == ["torch", "torch-compile"]
    assert [arm.facts.runtime_norm_fusions for arm in result.arms] == ["off", "on"]
    assert result.profile.provider == "torch and torch-compile"
    assert compiled_with == [((2, 1, 28, 28), checkpoint)]


def test_torch_eager_and_compiled_give_the_logits_of_the_checkpoint(checkpoint, digits):
    images = digits(2)
    (truth,) = open_image_model(checkpoint, 1).run(images).values()
    for provider in ("torch", "torch-compile"):
        runner = TorchRunner(checkpoint, provider=provider, batch=2, threads=1)
        assert np.abs(run_images(runner, images) - truth).max() < 1e-5 * np.abs(truth).max()
        assert [spec.shape for spec in runner.inputs] == [(None, 1, 28, 28)]
        with pytest.raises(InputError, match="1x28x28"):
            run_images(runner, images[..., :20])
        runner.close()


def test_torch_without_its_compiler_or_gpu_says_so(checkpoint, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDevice, match="no CUDA GPU"):
        bench([checkpoint], provider="cuda", threads=1, options=QUICK)

    def no_compiler(*args, **options):
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(MissingDependency, match=r"No working C\+\+ compiler found\.\nInstall"):
        bench([checkpoint], compiled=True, threads=1, options=QUICK)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match="`running a checkpoint` needs torch"):
        bench([checkpoint], threads=1, options=QUICK)


def test_what_torch_does_not_do_is_refused(checkpoint, onnx):
    with pytest.raises(InputError, match="on cpu or cuda, not on tensorrt"):
        bench([checkpoint], provider="tensorrt", options=QUICK)
    with pytest.raises(InputError, match="none is among the models"):
        bench([onnx], compiled=True, options=QUICK)
    assert torch_provider("cuda", compiled=True) == "torch-cuda-compile"


@pytest.mark.parametrize(
    ("provider", "copies"),
    [("torch", None), ("cpu and torch and torch-compile", None), ("torch-cuda", True), ("cpu and torch-cuda", True)],
)
def test_copies_are_counted_where_torch_is_on_a_gpu(provider, copies):
    profile = preset("single-stream", provider=provider, input="random")
    assert (profile.h2d, profile.d2h) == (copies, copies)
