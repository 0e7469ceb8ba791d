"""Operators that TensorRT lacks, from libraries: given to the builder, the runtime, trtexec; or refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from test_engine_build_releases import build
from test_engine_trt import PLAN, load
from trt_api import RELEASES
from trt_standin import Release

from msn_deploy.core.artifacts import read_sidecar
from msn_deploy.core.errors import InputError
from msn_deploy.engine import BuildOptions, OrtRunner, find_target, open_runnable, write_device_script
from msn_deploy.engine.backends import pick_backend
from msn_deploy.engine.build import build_engine_file, choose_site
from msn_deploy.engine.plan import read_plan
from msn_deploy.engine.preflight import preflight
from msn_deploy.engine.proxy import check_with_rtx
from msn_deploy.engine.tensors import parse_shapes
from msn_deploy.engine.trust import trust
from msn_deploy.machine.device import what_machine
from msn_deploy.model.opened import open_model


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """A shared library; loaded for all to see, the process finds its symbol."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), which makes the library")
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "voxelize.c").write_text("int voxelize_is_registered(void) { return 7; }")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libvoxelize.so", folder / "voxelize.c"], check=True)
    return folder / "libvoxelize.so"


@pytest.fixture
def foreign(tmp_path):
    """A file with an operator of another domain than ONNX's."""
    shape = [1, 4]
    graph = helper.make_graph(
        [helper.make_node("Voxelize", ["x"], ["y"], domain="acme.ops", name="vox0")],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme.ops", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


@pytest.mark.parametrize("release", [each for each in RELEASES if not each.startswith("rtx")])
def test_a_library_is_loaded_for_all_to_see_and_recorded(save, library, release):
    trt = Release(release)
    report = build(save(), trt, plugins=(library,))
    assert ctypes.CDLL(None).voxelize_is_registered() == 7
    names = [call[0] for call in trt.calls]
    assert names.index("init_libnvinfer_plugins") < names.index("create_network")
    side = read_sidecar(report.path)
    assert (side.facts["plugins"], side.config["plugins"]) == (["libvoxelize.so"], [str(library)])
    assert read_plan(report.path).needs == ("libvoxelize.so",)


def test_nvidias_own_plugins_are_known_without_a_library(save):
    trt = Release("8.6.1")
    assert build(save(), trt).plugins == ()
    assert trt.called("init_libnvinfer_plugins") == [""]


def test_tensorrt_rtx_takes_none_and_says_so_before_the_library_is_loaded(save):
    trt = Release("rtx-1.7.1")
    with pytest.raises(
        InputError, match=r"TensorRT-RTX 1\.7\.1 takes no operators but its own.*\n.*build with TensorRT"
    ):
        build(save(), trt, plugins=(Path("gone.so"),))
    assert not trt.called("create_network")


def test_a_library_that_does_not_load_is_named(save, tmp_path):
    (tmp_path / "text.so").write_text("no library")
    for name in ("gone.so", "text.so"):
        with pytest.raises(InputError, match=rf"{name} does not load: .*\n`--plugins` takes a shared library"):
            build(save(), Release("10.3.0"), plugins=(tmp_path / name,))


def test_an_unknown_operator_is_told_with_its_domain_and_what_helps(foreign):
    text = "creator && Plugin not found, are the plugin name, version, and namespace correct?"
    with pytest.raises(
        InputError, match=r"node vox0 \(Voxelize of the domain acme\.ops\) of .*\n.*`--plugins LIB\.so`"
    ):
        build(foreign, Release("10.3.0", error=(0, "vox0", "Voxelize", text)))
    with pytest.raises(InputError, match=r"replace it in the network\.$"):
        build(foreign, Release("rtx-1.7.1", error=(0, "vox0", "Voxelize", text)))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="tensorrt_rtx is not installed")
def test_tensorrt_rtx_itself_says_that_it_lacks_the_operator(foreign):
    model, options = open_model(foreign, step="test"), BuildOptions(backend="tensorrt-rtx")
    site = choose_site(options, "fp32", machine=what_machine(), backend=pick_backend("tensorrt-rtx", None))
    with pytest.raises(
        InputError, match=r"Voxelize of the domain acme\.ops.*\n.* no operator Voxelize: replace it in the"
    ):
        build_engine_file(model, foreign.with_suffix(".engine"), options=options, site=site)


def test_onnx_runtime_names_the_operators_that_it_lacks(foreign):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=r"ONNX does not have Voxelize of acme\.ops; TensorRT takes .*`--plugins`"):
        OrtRunner(open_model(foreign, step="test"), threads=1)
    with pytest.raises(InputError, match=r"foreign\.onnx is not an engine"):
        open_runnable(foreign, plugins=[Path("lib.so")])


def test_the_device_gets_the_library_that_lies_beside_its_script(foreign):
    made = write_device_script(
        open_model(foreign, step="test"),
        foreign.with_suffix(".engine"),
        target=find_target("orin-nano"),
        precision="fp32",
        options=BuildOptions(plugins=(Path("/elsewhere/libvoxelize.so"),)),
    )
    assert made.plugins == ("libvoxelize.so",)
    assert "--plugins ./libvoxelize.so" in made.commands[0]
    assert made.trtexec["TensorRT 8.5.2"].endswith("--plugins=./libvoxelize.so")
    assert made.trtexec["TensorRT 8.6.2"].endswith("--staticPlugins=./libvoxelize.so")
    script = made.script.read_text(encoding="utf-8")
    assert script.count("--staticPlugins=./libvoxelize.so") == 3  # 8.6, 10 and 11


def test_what_tensorrt_rtx_cannot_read_is_not_checked_with_it(foreign):
    assert check_with_rtx(open_model(foreign, step="test"), options=BuildOptions(plugins=(Path("lib.so"),))) is None


def test_an_engine_is_loaded_with_the_libraries_that_it_was_built_with(forge_plan, orin):
    path = forge_plan(plugins=["libvoxelize.so"])
    trust(read_plan(path).sha256, path.name)
    given = (Path("/lib/libvoxelize.so"), Path("other.so"))
    assert preflight(path, here=orin(), plugins=given).plugins == given
    for wrong in ((), given[1:]):
        with pytest.raises(
            InputError, match=r"built with operators of libvoxelize\.so\.\n.*`--plugins libvoxelize\.so`"
        ):
            preflight(path, here=orin(), plugins=wrong)
    with pytest.raises(InputError, match=r"built without plugins"):
        preflight(forge_plan(), here=orin(), plugins=given)
    with pytest.raises(InputError, match="which cannot be a name"):
        read_plan(forge_plan(plugins=["a\nb"]))


def test_the_command_that_builds_an_engine_again_has_its_shapes_and_libraries(foreign, library, orin):
    trt = Release("10.3.0", inputs={"x": ("FLOAT", (1, 4))}, outputs={"y": ("FLOAT", (1, 4))})
    model = onnx.load(foreign)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "W"
    onnx.save(model, foreign)
    shapes = (parse_shapes("x=1x2:1x4:1x8"),)
    plan = read_plan(build(foreign, trt, plugins=(library,), shapes=shapes).path)
    assert " --shapes x=1x2:1x4:1x8 --plugins libvoxelize.so --out model.engine" in plan.rebuild(orin())


def test_the_runner_loads_them_first(library, monkeypatch):
    from dataclasses import replace

    seen = []
    monkeypatch.setattr("msn_deploy.engine.trt.load_plugins", lambda trt, logger, given, *, title: seen.append(given))
    runner, _, _ = load(plan=replace(PLAN, plugins=(library,)))
    assert seen == [(library,)]
    runner.close()
