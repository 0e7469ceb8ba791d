"""The help must answer at once: neither it nor `import msn_deploy` may load what takes long."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import msn_deploy

pytestmark = pytest.mark.slow

HEAVY = (
    "typer",
    "pydantic",
    "rich",
    "jinja2",
    "numpy",
    "PIL",
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt_rtx",
    "safetensors",
)
FRAMEWORKS = ("pydantic", "numpy", "torch", "onnx", "onnxruntime", "tensorrt_rtx")
COMMANDS = (
    *("targets", "doctor", "verify", "bundle", "export", "train", "study", "suite", "calibrate", "import-checkpoint"),
    "build-engine",
)
LOADED = f"print([name for name in {HEAVY} if name in sys.modules])"


def _python(code, env):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_help_loads_nothing_heavy(process_env, args):
    code = f"import sys; from msn_deploy.cli.app import main; assert main({args}) == 0; {LOADED}"
    assert _python(code, process_env).splitlines()[-1] == "[]"


def test_import_loads_nothing_heavy(process_env):
    assert _python(f"import sys, msn_deploy; {LOADED}", process_env) == "[]\n"


def test_an_unknown_command_loads_no_framework(process_env):
    code = f"import sys; from msn_deploy.cli.app import main; assert main(['trian']) == 2; {LOADED}"
    assert _python(code, process_env) == "[]\n"


@pytest.mark.parametrize(
    "line", ["export gone.safetensors", "export gone.py:build", "train gone.toml", "eval gone.onnx"]
)
def test_a_path_that_leads_nowhere_is_said_before_torch_is_loaded(process_env, line):
    code = f"import sys; from msn_deploy.cli.app import main; assert main({line.split()}) == 2; {LOADED}"
    assert "'torch'" not in _python(code, process_env)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_no_framework(process_env, name):
    code = f"import sys; from msn_deploy.cli.app import main; assert main(['{name}', '--help']) == 0; {LOADED}"
    loaded = _python(code, process_env).splitlines()[-1]
    assert not [each for each in FRAMEWORKS if f"'{each}'" in loaded]


def test_public_names_exist(process_env):
    code = "import msn_deploy, json; print(json.dumps([n for n in msn_deploy.__all__ if not hasattr(msn_deploy, n)]))"
    assert json.loads(_python(code, process_env)) == []


def test_type_checkers_and_dir_know_the_public_names():
    stub = ast.parse(Path(msn_deploy.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    typed = {alias.name: each.module for each in stub.body if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert typed == msn_deploy._HOME
    assert set(msn_deploy.__all__) <= set(dir(msn_deploy))
    assert Path(msn_deploy.__file__).with_name("py.typed").is_file()


def test_a_benchmark_without_a_page_loads_no_templates(process_env):
    code = "import sys, msn_deploy.report.bench, msn_deploy.report.suite; print('jinja2' in sys.modules)"
    assert _python(code, process_env) == "False\n"
