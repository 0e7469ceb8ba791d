"""Which wheels go along: chosen by pip from a folder of invented ones."""

import tarfile
from pathlib import Path

import pytest
from bundle_devices import ORIN_NANO, wheel

import msn_deploy
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline import wheels
from msn_deploy.pipeline.bundle import bundle

pytestmark = pytest.mark.slow


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that holds all of two invented requirements, and msn-deploy itself."""
    folder = tmp_path / "house"
    folder.mkdir()
    wheel(folder, "msn_deploy")
    wheel(folder, "pure", needs=("deeper",))
    wheel(folder, "deeper")
    for python in ("310", "312"):
        wheel(folder, "compiled", f"cp{python}-cp{python}-manylinux_2_28_aarch64")
        wheel(folder, "compiled", f"cp{python}-cp{python}-manylinux_2_28_x86_64")
    monkeypatch.setattr(wheels, "device_requirements", lambda extras: ["pure", "compiled>=2"])
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def gathered(tmp_path, house, *pythons) -> list[str]:
    folder = tmp_path / "gathered"
    folder.mkdir()
    return [path.name for path in wheels.gather_wheels(folder, source=house, pythons=pythons)]


def test_wheels_are_those_of_the_device(tmp_path, house):
    assert gathered(tmp_path, house, "3.10", "3.12") == [
        "compiled-99-cp310-cp310-manylinux_2_28_aarch64.whl",
        "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl",
        "deeper-99-py3-none-any.whl",
        "msn_deploy-99-py3-none-any.whl",
        "pure-99-py3-none-any.whl",
    ]


def test_a_wheel_that_is_missing_is_named(tmp_path, house):
    (house / "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl").unlink()
    with pytest.raises(InputError, match=r"compiled(.|\n)*--no-wheels"):
        gathered(tmp_path, house, "3.12")


@pytest.mark.parametrize("name", ["tensorrt", "torch", "tensorrt_cu12_libs", "nvidia_cuda_runtime"])
def test_no_second_tensorrt_and_no_torch_comes_along(tmp_path, house, name):
    wheel(house, name)
    wheel(house, "deeper", needs=(name,))
    with pytest.raises(InputError, match=f"{name}-99.*must not go to a Jetson"):
        gathered(tmp_path, house, "3.10")


def test_what_is_no_folder_or_no_python(tmp_path, house):
    with pytest.raises(InputError, match="not a folder"):
        wheels.gather_wheels(tmp_path, source=tmp_path / "gone", pythons=("3.10",))
    with pytest.raises(InputError, match=r"--python '3\.x'"):
        wheels.gather_wheels(tmp_path, source=house, pythons=("3.x",))


def test_a_bundle_with_wheels(run, tmp_path, house):
    report = bundle(run, tmp_path / "b.tar", target=ORIN_NANO, wheels=house, pythons=("3.10",))
    assert "wheels/compiled-99-cp310-cp310-manylinux_2_28_aarch64.whl" in [f"wheels/{name}" for name in report.wheels]
    with tarfile.open(report.path) as archive:
        assert "b/wheels/pure-99-py3-none-any.whl" in archive.getnames()


def test_what_runs_a_model():
    names = {requirement.split(">")[0].split("<")[0] for requirement in wheels.device_requirements()}
    assert {"numpy", "pillow", "typer", "onnx", "onnxruntime"} <= names
    assert not any(name.startswith(("torch", "tensorrt", "pycuda", "msn-deploy")) for name in names)
    assert Path(msn_deploy.__file__).is_file()
