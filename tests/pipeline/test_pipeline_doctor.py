"""Engines of a run folder after an update of JetPack or of the driver, on stand-ins of both TensorRT releases."""

import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from bundle_devices import onnx_bytes
from trt_standin import Release

from msn_deploy.core.artifacts import publish, read_sidecar, sha256_of
from msn_deploy.core.errors import GateError, InputError
from msn_deploy.core.model_info import TensorSpec
from msn_deploy.engine import BuildOptions, OrtRunner, build_engine_file
from msn_deploy.engine.build import choose_site
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.engine.trust import trusted
from msn_deploy.model.opened import open_model
from msn_deploy.pipeline.doctor import check_agree, look_at_run, options_of, rebuild_run

pytestmark = pytest.mark.slow

JETPACK_62 = {"l4t": "36.4.3", "versions": {"tensorrt": "10.3.0"}}
JETPACK_72 = {"l4t": "39.2.0", "versions": {"tensorrt": "10.16.1"}}  # the release that is recorded
CHOSEN = BuildOptions(batch=6, min_batch=2, opt_batch=4, workspace_mib=64, optimization_level=3, replicates=2)


@pytest.fixture(autouse=True)
def nothing_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path, orin):
    """A run folder with an engine of JetPack 6.2 and its replicate."""
    run = tmp_path / "run"
    onnx = run / "net.onnx"
    publish(onnx, lambda path: path.write_bytes(onnx_bytes(batch="N")) and None, kind="onnx")
    trt = Release("10.3.0", inputs={"x": ("FLOAT", (-1, 1, 8, 8))})
    machine = orin(**JETPACK_62).machine
    for number, name in ((1, "net.engine"), (2, "net.r2.engine")):
        model = open_model(onnx, step="test")
        site = choose_site(CHOSEN, "fp32", machine=machine, backend=trt.backend)
        build_engine_file(model, run / name, options=CHOSEN, site=site, replicate=number)
    return run


@pytest.fixture
def updated(monkeypatch):
    """Let the builder of this machine be the stand-in of a release; returns it."""

    def to(release="10.16.1", **more):
        trt = Release(release, inputs={"x": ("FLOAT", (-1, 1, 8, 8))}, **more)
        monkeypatch.setattr("msn_deploy.engine.build.pick_backend", lambda *args, **options: trt.backend)
        return trt

    return to


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rebuild(folder, here, prove=lambda path, model, here: None):
    return {each.name: each for each in rebuild_run(folder, here=here, prove=prove)}


def test_an_engine_of_this_machine_is_fine_and_is_not_rebuilt(folder, orin, updated):
    before = contents(folder)
    lines = look_at_run(folder, here=orin(**JETPACK_62))
    assert [(each.name, each.verdict, each.hint) for each in lines] == [
        ("net.engine", "ok", ""), ("net.r2.engine", "ok", "")
    ]  # fmt: skip
    trt = updated()
    assert list(rebuild(folder, orin(**JETPACK_62)).values()) == lines
    assert (trt.calls, contents(folder)) == ([], before)


@pytest.mark.parametrize(
    ("here", "verdict", "words"),
    [
        (JETPACK_72, "problem", "stale: was built by TensorRT 10.3.0, and here is TensorRT 10.16.1"),
        ({**JETPACK_62, "l4t": "36.5.0"}, "warning", "timed under L4T 36.4.3, and here is L4T 36.5.0"),
        ({**JETPACK_62, "l4t": None}, "ok", ""),  # a container that does not know it
        ({**JETPACK_62, "jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3}, "warning", "on another device"),
        ({**JETPACK_62, "jetson": "Jetson, model unknown"}, "ok", ""),
        ({**JETPACK_62, "versions": {}}, "warning", "no TensorRT is installed here"),
        ({**JETPACK_62, "gpu": None}, "warning", "no NVIDIA driver answers here"),
    ],
)
def test_each_engine_is_judged_by_its_sidecar(folder, orin, here, verdict, words):
    for check in look_at_run(folder, here=orin(**here)):
        assert check.verdict == verdict
        assert words in check.found
        assert bool(check.hint) == (verdict != "ok")


def test_another_driver_is_told_where_there_is_no_l4t(forge_plan, orin, tmp_path):
    forge_plan(machine={"arch": "aarch64", "driver": "580.65.06"})
    (check,) = look_at_run(tmp_path, here=orin(driver="595.78"))
    assert (check.verdict, "driver 580.65.06, and here is driver 595.78" in check.found) == ("warning", True)
    forge_plan(machine={"arch": "aarch64", "driver": "580.65.06"})
    assert look_at_run(tmp_path, here=orin(driver=None))[0].verdict == "ok"


def test_what_is_damaged_or_hidden(folder, orin):
    (folder / "net.engine").write_bytes(b"other")
    (folder / ".rebuild-x").mkdir()
    (folder / ".rebuild-x/net.engine").write_bytes(b"left by a killed run")
    damaged, whole = look_at_run(folder, here=orin(**JETPACK_62))
    assert (damaged.verdict, damaged.hint, whole.verdict) == ("problem", f"msn-deploy verify {folder}", "ok")
    with pytest.raises(InputError, match="is not a folder"):
        look_at_run(folder / "net.onnx")


def test_a_rebuilt_engine_has_the_options_of_the_old_one(folder, orin, updated):
    old = {name: read_sidecar(folder / name) for name in ("net.engine", "net.r2.engine")}
    trt, here, proved = updated(plan=b"a newer plan"), orin(**JETPACK_72), []
    lines = rebuild(folder, here, prove=lambda path, model, here: proved.append((path.name, path.read_bytes())))
    assert proved == [("net.engine", b"a newer plan"), ("net.r2.engine", b"a newer plan")]
    assert [each.verdict for each in lines.values()] == ["ok", "ok"]
    assert all(each.found.startswith("rebuilt: TensorRT 10.16.1, ") for each in lines.values())
    for name, before in old.items():
        side = read_sidecar(folder / name)
        assert (side.config, side.parents) == (before.config, before.parents)
        assert (side.facts["replicate"], side.facts["ranges"]) == (before.facts["replicate"], before.facts["ranges"])
        assert (side.facts["backend_version"], side.sha256) == ("10.16.1", sha256_of(folder / name))
        assert side.sha256 in trusted()
    assert trt.called("builder_optimization_level") == [3, 3]
    assert ("set_shape", "x", (2, 1, 8, 8), (4, 1, 8, 8), (6, 1, 8, 8)) in trt.calls
    assert [each.verdict for each in look_at_run(folder, here=here)] == ["ok", "ok"]
    assert sorted(contents(folder)) == [
        "net.engine", "net.onnx", "net.onnx.json", "net.plan.json", "net.r2.engine", "net.r2.plan.json"
    ]  # fmt: skip


def refuse(path, model, here):
    raise GateError("net.engine makes another y of random numbers than net.onnx: cosine 0.1.\nMore.")


@pytest.mark.parametrize(
    ("trt", "prove", "words"),
    [({}, refuse, "cosine 0.1"), ({"plan": None}, None, "out of workspace"), ({"refuse": "no CUDA"}, None, "no CUDA")],
)
def test_the_old_engine_stays_until_the_new_one_has_passed(folder, orin, updated, trt, prove, words):
    before = contents(folder)
    updated(**trt)
    lines = rebuild(folder, orin(**JETPACK_72), **({"prove": prove} if prove else {}))
    for check in lines.values():
        assert check.verdict == "problem"
        assert "not rebuilt, the old one stays: " in check.found
        assert words in check.found
    assert contents(folder) == before


def test_a_killed_rebuild_leaves_the_old_engine(folder, orin, updated):
    before = contents(folder)

    def killed():
        raise KeyboardInterrupt

    updated(building=killed)
    with pytest.raises(KeyboardInterrupt):
        rebuild(folder, orin(**JETPACK_72))
    assert contents(folder) == before


@pytest.mark.parametrize(
    "other",
    [{"jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3}, {"arch": "x86_64", "jetson": None}],
)
def test_an_engine_of_another_machine_is_never_replaced(folder, orin, updated, other):
    before, trt = contents(folder), updated(plan=b"a newer plan")
    lines = rebuild(folder, orin(**{**JETPACK_72, **other}))  # of another TensorRT besides
    assert [each.verdict for each in lines.values()] == ["warning", "warning"]
    assert (contents(folder), trt.calls) == (before, [])


def test_a_rebuild_that_was_killed_between_its_renames_is_finished(folder, orin, updated):
    old = (folder / "net.plan.json").read_bytes()
    updated(plan=b"a newer plan")
    rebuild(folder, orin(**JETPACK_72))
    whole = contents(folder)
    (folder / ".rebuild-x").mkdir()
    (folder / "net.plan.json").rename(folder / ".rebuild-x/net.plan.json")
    (folder / "net.plan.json").write_bytes(old)
    assert look_at_run(folder, here=orin(**JETPACK_72))[0].verdict == "problem"
    (folder / ".rebuild-y").mkdir()  # of a run that is still building
    (folder / ".rebuild-y/net.engine").write_bytes(b"half")
    lines = rebuild(folder, orin(**JETPACK_72))
    assert [each.verdict for each in lines.values()] == ["ok", "ok"]
    assert (folder / ".rebuild-y/net.engine").is_file()
    shutil.rmtree(folder / ".rebuild-y")
    assert contents(folder) == whole


def test_what_a_killed_rebuild_has_left_goes_with_the_next_one_and_what_still_builds_stays(folder, orin, updated):
    def hidden():
        return list(folder.glob(".rebuild-*"))

    def killed():
        shutil.copytree(*hidden(), folder / ".rebuild-killed")  # no time to tidy up
        raise KeyboardInterrupt

    updated(building=killed)
    with pytest.raises(KeyboardInterrupt):
        rebuild(folder, orin(**JETPACK_72))
    assert [path.name for path in hidden()] == [".rebuild-killed"]
    seen = []

    def beside_another():
        seen.append(hidden())
        rebuild(folder, orin(**JETPACK_72, jetson="NVIDIA Orin NX Developer Kit", memory_gib=15.3))  # none is its own
        assert hidden() == seen[-1]

    updated(plan=b"a newer plan", building=beside_another)
    rebuild(folder, orin(**JETPACK_72))
    assert [len(each) for each in seen] == [1, 1]  # its own alone
    assert hidden() == []


def test_an_engine_without_its_onnx_file_is_not_touched(folder, orin, updated):
    (folder / "net.onnx").unlink()
    before, trt = contents(folder), updated()
    for check in rebuild(folder, orin(**JETPACK_72)).values():
        assert (check.verdict, "Copy net.onnx next to it" in check.hint) == ("problem", True)
    assert (contents(folder), trt.calls) == (before, [])


def test_the_options_of_a_sidecar_come_back(tmp_path):
    shapes = (parse_shapes("x=1x3x32x32:1x3x64x64:1x3x96x96"),)
    chosen = BuildOptions(
        precision="int8",
        backend="tensorrt",
        batch=9,
        min_batch=2,
        opt_batch=3,
        shapes=shapes,
        plugins=(Path("lib.so"),),
        workspace_mib=99,
        optimization_level=1,
        version_compatible=True,
        hardware_compatible=True,
        dla=1,
        max_dla_fallback=20.0,
        calibration_table=Path("elsewhere/net.int8.cache"),
        replicates=3,
    )
    kept = {each.name for each in fields(BuildOptions) if getattr(chosen, each.name) == each.default}
    assert kept == {"target", "timing_cache"}  # a new option belongs above
    assert options_of(chosen.as_config(), tmp_path) == chosen
    assert options_of({**chosen.as_config(), "target": "orin-nx-16gb", "timing_cache": "t"}, tmp_path) == chosen
    assert options_of({"target": "rtx-sm89", "backend": "tensorrt-rtx"}, tmp_path).target.name == "rtx-sm89"
    (tmp_path / "net.int8.cache").touch()
    assert options_of(chosen.as_config(), tmp_path).calibration_table == tmp_path / "net.int8.cache"
    for odd in ({"workspace_mib": "much"}, {"batch": "all"}, {"optimization_level": 9}, {"target": "orin-xy"}):
        with pytest.raises(InputError):
            options_of(odd, tmp_path)


@pytest.mark.parametrize("garbles", [False, True])
def test_a_new_engine_runs_once_beside_its_onnx_file_and_both_are_closed(folder, orin, updated, monkeypatch, garbles):
    class Engine(OrtRunner):
        """Runs the ONNX file in the place of its engine."""

        closed = 0

        def run(self, feeds):
            return {name: values - 2 * values * garbles for name, values in super().run(feeds).items()}

        def close(self):
            Engine.closed += 1
            super().close()

    def load(plan):
        assert plan.data == b"a newer plan"  # the bytes that preflight has looked at
        return Engine(open_model(folder / "net.onnx", step="test"))

    updated(plan=b"a newer plan")
    monkeypatch.setattr("msn_deploy.pipeline.doctor.runner_of", load)
    lines = rebuild_run(folder, here=orin(**JETPACK_72))
    assert Engine.closed == len(lines) == 2
    assert {each.verdict for each in lines} == ({"problem"} if garbles else {"ok"})
    assert ((folder / "net.engine").read_bytes() == b"a newer plan") != garbles


class Answers:
    """A runner that answers what it is told."""

    name = "net.engine"
    inputs = (TensorSpec("x", "float32", (None, 4)),)
    batch_range = (2, 8)

    def __init__(self, answer):
        self.answer = answer

    def run(self, feeds):
        assert feeds["x"].shape == (2, 4)
        return {"y": self.answer(feeds["x"])}


@pytest.mark.parametrize(
    ("answer", "agrees"),
    [
        (lambda x: x, True),
        (lambda x: x * 1.02 + 0.01, True),
        (lambda x: x[::-1], False),
        (lambda x: -x, False),
        (lambda x: x[:1], False),  # as many rows as it finds
        (lambda x: np.full_like(x, np.nan), False),
        (np.zeros_like, False),
    ],
)
def test_an_engine_has_to_point_where_its_file_does(answer, agrees):
    if agrees:
        check_agree(Answers(answer), Answers(lambda x: x))
        return
    with pytest.raises(GateError, match="makes another y of random numbers"):
        check_agree(Answers(answer), Answers(lambda x: x))
