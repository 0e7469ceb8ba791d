"""The wheel: what it holds, and what it does in an environment that has no torch."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import msn_deploy

REPO = Path(msn_deploy.__file__).resolve().parent.parent
HOST_ONLY = ("torch", "safetensors", "onnxsim", "onnxscript", "sklearn", "pytest")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REPO / "pyproject.toml").is_file(), reason="needs the source tree"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source tree with the installed hatchling: nothing is downloaded."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"msn_deploy", f"msn_deploy-{msn_deploy.__version__}.dist-info"}
    unwanted = ("__pycache__", "tests/", ".safetensors", ".engine", ".partial", ".pyc", "results/")
    assert [name for name in names if any(part in name for part in unwanted)] == []
    assert "msn_deploy/_recipes/models/facts.json" in names
    recipes = {name for name in names if name.startswith("msn_deploy/_recipes/models/") and name.endswith(".toml")}
    assert {Path(name).name for name in recipes} == {path.name for path in (REPO / "models").glob("*.toml")} != set()
    suites = {Path(name).name for name in names if name.startswith("msn_deploy/_recipes/suites/")}
    assert (
        suites
        == {path.name for path in (REPO / "benchmarks" / "suites").glob("*.toml")}
        >= {"paper.toml", "smoke.toml"}
    )
    assert "msn_deploy/_recipes/calibration/digits/train-images-idx3-ubyte.gz" in names
    assert {"msn_deploy/__init__.pyi", "msn_deploy/py.typed"} <= set(names)
    modules = {name.removeprefix("msn_deploy/") for name in names if name.endswith(".py")}
    package = REPO / "msn_deploy"
    assert modules == {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    templates = {Path(name).name for name in names if name.startswith("msn_deploy/report/templates/")}
    assert templates == {path.name for path in (package / "report" / "templates").iterdir()} > {"style.css.j2"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def _needed(wheel, extra):
    """Return the installed distributions that the wheel needs with an extra, and what these need."""
    metadata = zipfile.Path(wheel, f"msn_deploy-{msn_deploy.__version__}.dist-info/METADATA").read_text()
    lines = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    found = {}
    todo = [(Requirement(line), {extra, ""}) for line in lines]
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": each}) for each in extras):
            continue
        name = canonicalize_name(requirement.name)
        if name in found or name == "msn-deploy":
            continue
        found[name] = importlib.metadata.distribution(requirement.name)
        wanted = {"", *requirement.extras}
        todo += [(Requirement(line), wanted) for line in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def device(wheel, tmp_path_factory, run_folder):
    """A fresh environment with `msn-deploy[rtx]` and only that; returns a function that runs a command in it."""
    place = tmp_path_factory.mktemp("device")
    venv.create(place / "env", with_pip=False, symlinks=True)
    python = place / "env" / "bin" / "python"
    (site,) = (place / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for distribution in _needed(wheel, "rtx").values():
        for file in distribution.files or ():
            source, target = Path(distribution.locate_file(file)), site / file
            if ".." in file.parts or not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    script = place / "env" / "bin" / "msn-deploy"
    script.write_text(f"#!{python}\nfrom msn_deploy.cli.app import run\n\nrun()\n")
    script.chmod(0o755)
    shutil.copytree(run_folder, place / "work")
    for checkpoint in (place / "work").glob("*.safetensors*"):
        checkpoint.unlink()
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MSN_DEPLOY"))}
    env["MSN_DEPLOY_HOME"] = str(place / "home")  # its own: it calibrates, and finds nothing that another has

    def run(*args, program=script):
        command = [str(program), *map(str, args)]
        return subprocess.run(command, cwd=place / "work", env=env, capture_output=True, text=True, timeout=120)

    run.python = python
    run.site = site
    run.work = place / "work"
    return run


def _ok(done):
    assert done.returncode == 0, done.stderr
    aside = ("wrote ", "next: ", "train: ", "test: ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(aside)] == []
    return done.stdout


def test_the_environment_is_what_the_test_says(device):
    """Without this, the tests below would prove nothing."""
    code = "import importlib.util, msn_deploy, sys\n" + (
        f"print([name for name in {HOST_ONLY} if importlib.util.find_spec(name)], msn_deploy.__file__)"
    )
    out = _ok(device("-c", code, program=device.python))
    assert out == f"[] {device.site / 'msn_deploy' / '__init__.py'}\n"
    failed = device("-c", "import torch", program=device.python)
    assert "No module named 'torch'" in failed.stderr


def test_help_doctor_and_targets(device):
    assert "build-engine" in _ok(device("--help"))
    assert "orin-nano-8gb" in _ok(device("targets"))
    checks = {check["name"]: check for check in json.loads(_ok(device("doctor", "--json")))}
    assert checks["torch"]["verdict"] == "warning"
    assert "'.[train]'" in checks["torch"]["hint"]
    assert "TensorRT-RTX" in checks["tensorrt"]["found"]


def test_every_module_of_the_device_half_imports(device):
    for layer in ("core", "data", "machine", "model", "tasks", "engine", "quant", "bench", "report", "pipeline", "cli"):
        names = [
            f"msn_deploy.{layer}.{path.stem}" for path in sorted((device.site / "msn_deploy" / layer).glob("*.py"))
        ]
        code = f"import importlib; [importlib.import_module(n.removesuffix('.__init__')) for n in {names}]"
        _ok(device("-c", code, program=device.python))


@pytest.mark.parametrize("name", ["cnn3_msn.onnx", "cnn3_bn.unfolded.onnx", "cnn3_msn.int8.onnx"])
def test_eval(device, ok, run_folder, name):
    here = json.loads(_ok(device("eval", name, "--json", "-")))
    there = json.loads(ok("eval", run_folder / name, "--json", "-").out)
    assert here["predictions"] == there["predictions"]
    assert here["accuracy"] > 0.85


def test_infer_and_verify(device, digit_images):
    lines = _ok(device("infer", "cnn3_msn.onnx", *digit_images[:5], "--json")).splitlines()
    assert len([json.loads(line)["label"] for line in lines]) == 5
    assert "cnn3_msn.int8.engine" in _ok(device("verify", ".", "-v"))


def test_bench(device):
    out = _ok(
        device("bench", "cnn3_msn.onnx", "--seconds", 0.6, "--threads", 1, "--json", "b.json", "--html", "b.html", "-q")
    )
    assert "cnn3_msn" in out
    (arm,) = json.loads((device.work / "b.json").read_text())["arms"]
    assert arm["median_ms"] > 0


def test_calibrate_writes_what_the_workstation_writes(device, run_folder):
    _ok(device("calibrate", "cnn3_msn.onnx", "--samples", 100, "--out", "here.int8.onnx"))
    written = device.work / "here.int8.onnx"
    assert written.read_bytes() == (run_folder / "cnn3_msn.int8.onnx").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_build_engine(device, precision):
    options = [
        "--precision",
        precision,
        "--backend",
        "tensorrt-rtx",
        "--samples",
        100,
        "--out",
        f"new.{precision}.engine",
    ]
    report = json.loads(_ok(device("build-engine", "cnn3_bn.onnx", *options, "--json", "-")))
    assert report["engine"]["precision"] == precision
    assert (report["engine"]["int8_convs"] == 3) is (precision == "int8")


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        (["train", "cnn3_msn"], "train"),
        (["import-checkpoint", "some.t7"], "train"),
        (["eval", "some.safetensors"], "train"),
        (["export", "some.safetensors"], "export"),
        (["export", "net.py:factory", "--input-shape", "1,3,8,8"], "export"),
        (["export", "cnn3_msn.onnx", "--out", "again.onnx"], "export"),
        (["demo"], "train"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_needs_torch_says_what_to_install(device, args, extra):
    for name in ("some.safetensors", "net.py"):  # they are looked for first
        (device.work / name).touch()
    done = device(*args)
    assert done.returncode == 3
    assert done.stdout == ""
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert done.stderr.startswith("msn-deploy: ")
    assert f"pip install '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


USER_SCRIPT = """
import numpy as np
from torch import nn

import msn_deploy as msn

net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
conversion = msn.convert(net, "msn")
layer = msn.MSNConv2d(3, 8, 3, padding=1)
plain: nn.Module = msn.fold(conversion.model)
recipe = msn.load_recipe("vgg7_msn")
epochs: int = recipe.train.epochs
run = msn.train(recipe, "runs")
report = msn.export(run.checkpoint, opset=17)
folded: bool = report.folded
int8 = msn.calibrate(report.path, data="digits")
built = msn.build_engine(int8.path, precision="int8")
found = msn.evaluate(int8.path)
accuracy: float | None = found.accuracy
result = msn.benchmark([report.path, int8.path], seconds=2)
ratio: float = result.arms[1].ratio
table: dict[str, object] = result.to_dict()
with msn.load(int8.path) as model:
    answer = model("photo.png")
words: str = answer.text()
findings = [each.verdict for each in msn.verify_folder("runs")]
difference = msn.diff(int8.path, report.path)
with msn.progress_bar() as progress:
    progress(1, 2, "half")
aware = msn.quantize_aware(net, np.zeros((64, 3, 8, 8), np.float32))
runner = msn.load_runner(report.path, threads=1)
msn.benchmark([report.path], seconds="two")  # type: ignore[arg-type]
recipe.epochs  # type: ignore[attr-defined]
"""


def test_mypy_knows_the_public_types_of_the_installed_wheel(wheel, tmp_path):
    api = pytest.importorskip("mypy.api")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = [line.partition("=")[0].partition(":")[0].strip() for line in USER_SCRIPT.splitlines() if " = " in line]
    unknown = "".join(f"reveal_type({name})\n" for name in names)
    (tmp_path / "user.py").write_text(USER_SCRIPT + unknown)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\nmypy_path = {tmp_path / 'site'}\nfollow_imports = silent\n"
    )
    said, err, code = api.run(
        ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "user.py")]
    )
    revealed = [line for line in said.splitlines() if "Revealed type" in line]
    assert (code, err, len(revealed)) == (0, "", len(names)), said
    assert not [line for line in revealed if 'type is "Any"' in line]
