"""Which wheels go along: chosen by pip from a folder of invented ones."""

import io
import tarfile
from pathlib import Path

import pytest
from bundle_devices import ORIN_NANO, wheel

import msn_deploy
from msn_deploy.core.errors import InputError
from msn_deploy.pipeline import wheels
from msn_deploy.pipeline.bundle import bundle

asks_pip = pytest.mark.slow


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


@asks_pip
def test_wheels_are_those_of_the_device(tmp_path, house):
    assert gathered(tmp_path, house, "3.10", "3.12") == [
        "compiled-99-cp310-cp310-manylinux_2_28_aarch64.whl",
        "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl",
        "deeper-99-py3-none-any.whl",
        "msn_deploy-99-py3-none-any.whl",
        "pure-99-py3-none-any.whl",
    ]


@asks_pip
def test_a_wheel_that_is_missing_is_named(tmp_path, house):
    (house / "compiled-99-cp312-cp312-manylinux_2_28_aarch64.whl").unlink()
    with pytest.raises(InputError, match=r"compiled(.|\n)*--no-wheels"):
        gathered(tmp_path, house, "3.12")


@asks_pip
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


@asks_pip
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


def pycuda(folder: Path, *needs: str, name: str = "PKG-INFO", text: str = "") -> None:
    """Write its source, as far as it is looked at."""
    lines = ["Metadata-Version: 2.1", "Name: pycuda", "Version: 99", *(f"Requires-Dist: {each}" for each in needs)]
    content = ("\n".join(lines) + f"\n\n{text}\n").encode()
    with tarfile.open(folder / "pycuda-99.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo(f"pycuda-99/{name}")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def asked(house, monkeypatch) -> list[list[str]]:
    """What pip would have been called with."""
    calls: list[list[str]] = []
    monkeypatch.setattr(wheels, "_pip", lambda *words: calls.append([str(word) for word in words]))
    return calls


NOT_PACKAGES = (
    "--log=/elsewhere/log",
    "--index-url=https://elsewhere/simple",
    "-r /elsewhere/requirements.txt",
    "deeper --hash=sha256:00",
    "./folder",
    "/elsewhere/evil-1.tar.gz",
    "https://elsewhere/evil-1.tar.gz",
    "git+https://elsewhere/evil",
    "evil @ https://elsewhere/evil-1.tar.gz",
    "evil @ file:///elsewhere/evil",
    "",
)


@pytest.mark.parametrize("line", NOT_PACKAGES)
@pytest.mark.parametrize("put", [pycuda, lambda folder, line: wheel(folder, "deeper", needs=(line,))])
def test_what_a_file_asks_for_is_packages_by_name(tmp_path, house, asked, put, line):
    put(house, line)
    with pytest.raises(
        InputError, match=r"(asks for what is not a package|from an address): .*\n.*Do not use that file"
    ):
        gathered(tmp_path, house, "3.10")
    assert asked == []


def test_what_pycuda_needs_comes_after_all_options(tmp_path, house, asked):
    pycuda(house, "deeper>=1", "never; extra == 'test'", text="Requires-Dist: --log=/elsewhere/log")
    gathered(tmp_path, house, "3.10")
    (words,) = asked
    assert words[words.index("--") + 1 :] == ["pure", "compiled>=2", "setuptools", "wheel", "deeper>=1"]


@pytest.mark.parametrize("spoil", ["no metadata", "not packed", "endless"])
def test_a_file_without_readable_metadata_is_named(tmp_path, house, asked, spoil):
    if spoil == "no metadata":
        pycuda(house, name="setup.py")
    elif spoil == "not packed":
        (house / "deeper-99-py3-none-any.whl").write_bytes(b"PK")
    else:
        pycuda(house, *(f"p{at}" for at in range(400_000)))
    with pytest.raises(InputError, match=r"has no readable metadata"):
        gathered(tmp_path, house, "3.10")
    assert asked == []
