"""Forged sidecars and forged machines: what is refused, in which words, and what is not."""

from __future__ import annotations

import hashlib
import json
import logging
import os

import pytest
from preflight_cases import ADA, DESKTOP, RTX, TABLE

from msn_deploy.core import artifacts
from msn_deploy.core.errors import InputError, MissingDependency
from msn_deploy.core.model_info import ModelInfo
from msn_deploy.engine.plan import read_plan
from msn_deploy.engine.preflight import check_version, preflight
from msn_deploy.engine.trust import trust, trusted

NX = {"arch": "aarch64", "jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3}
NX_PARTS = ("acme,nx150", "nvidia,p3767-0000", "nvidia,tegra234")
AGAIN = "msn-deploy build-engine net.int8.onnx --precision int8"
OUT = "--out net.engine"


@pytest.fixture(autouse=True)
def nothing_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("MSN_DEPLOY_HOME", str(tmp_path / "home"))


def trust_it(path):
    trust(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def refusal(kind, path, here):
    with pytest.raises(kind) as caught:
        preflight(path, here=here)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


def test_a_plan_that_fits_comes_back_with_the_bytes_that_were_checked(forge_plan, orin):
    info = ModelInfo(net="cnn3", norm="msn", precision="int8", classes=("a", "b"))
    path = forge_plan(info=info.to_json())
    trust_it(path)
    plan = preflight(path, here=orin())
    assert (plan.data, plan.info) == (b"a plan", info)
    assert plan.title == "TensorRT 10.3.0.30, sm_87, Jetson Orin Nano 8GB"
    assert orin().title == "TensorRT 10.3.0, sm_87, Jetson Orin Nano 8GB"


@pytest.mark.parametrize("case", TABLE)
def test_each_mismatch_has_its_own_words(forge_plan, orin, case):
    facts, machine, kind, code, words = TABLE[case]
    path = forge_plan(**facts)
    if case != "not trusted":
        trust_it(path)
    message = refusal(kind, path, orin(**machine))
    assert kind.exit_code == code
    assert words in message
    if case in ("no TensorRT", "no GPU"):
        assert "On this machine you can run net.int8.onnx." in message
    else:
        assert AGAIN in message
    if case not in ("no TensorRT", "no GPU", "not trusted"):
        assert "Built for TensorRT" in message
        assert f"; here: {orin(**machine).title}." in message


@pytest.mark.parametrize(
    ("facts", "machine", "command"),
    [
        ({"compute_capability": "8.6"}, {}, f"{AGAIN} --target orin-nano-8gb {OUT}"),
        ({}, {"gpu": ADA, **DESKTOP}, f"{AGAIN} {OUT}"),
        (RTX, {"gpu": ADA, "versions": {"tensorrt-rtx": "1.7.1.116"}, **DESKTOP}, f"{AGAIN} --target rtx-sm89 {OUT}"),
        (RTX, {"gpu": ADA, "versions": {"tensorrt": "10.3.0"}, **DESKTOP}, f"{AGAIN} {OUT}"),
    ],
)
def test_the_command_builds_it_for_the_machine_that_is_here(forge_plan, orin, facts, machine, command):
    path = forge_plan(**facts)
    with pytest.raises((InputError, MissingDependency)) as caught:
        preflight(path, here=orin(**machine))
    assert str(caught.value).endswith(f"Build it here: {command}")


@pytest.mark.parametrize(
    ("facts", "machine"),
    [
        ({"version_compatible": True}, {"versions": {"tensorrt": "10.13.3.9"}}),
        ({"version_compatible": True}, {"versions": {"tensorrt": "11.4.0"}}),
        ({"version_compatible": True, "backend_version": "8.6.2"}, {"versions": {"tensorrt": "10.3.0"}}),
        ({}, {"versions": {"tensorrt": "?"}}),  # told after the import, before the plan is touched
        (
            {"hardware_compatible": True, "compute_capability": "8.0", "machine": {"arch": "x86_64"}},
            {"gpu": ("NVIDIA GeForce RTX 5090", "12.0"), **DESKTOP},
        ),
        ({}, {"jetson": None}),  # a container that does not know its module
        ({"machine": {"arch": "aarch64", "jetson": None}}, {}),  # a plan that was built in one
        ({"compute_capability": None, "device": None, "machine": None}, {}),
        (RTX, {"versions": {"tensorrt-rtx": "1.7.1.116"}, "gpu": ("NVIDIA RTX A4000", "8.6"), **DESKTOP}),
        (  # finished on the GPU that it meets, and so tuned on none
            {**RTX, "device": "NVIDIA GeForce RTX 3090"},
            {"versions": {"tensorrt-rtx": "1.7.1.116"}, "gpu": ("NVIDIA RTX A4000", "8.6"), **DESKTOP},
        ),
        ({"dla_core": 1, "machine": None}, {"jetson": "NVIDIA Orin NX Developer Kit", "memory_gib": 15.3}),
        # unknown is no name: a container without the files of the device tree, on its own host and the other way round
        ({}, {"jetson": "Jetson, model unknown"}),
        ({"machine": {"arch": "aarch64", "jetson": "Jetson, model unknown", "memory_gib": 7.4}}, {}),
        ({"machine": NX, "dla_core": 1}, {"jetson": "Jetson, model unknown"}),
        ({"machine": NX, "dla_core": 1}, {"jetson": None}),
        # nor is the text of a carrier, where one side has the part number and the other a copy of the text
        ({"machine": {**NX, "jetson": "NX150_2024-12-23"}}, {**NX, "compatible": NX_PARTS}),
        ({"machine": {**NX, "compatible": list(NX_PARTS)}}, {**NX, "jetson": "NX150_2024-12-23"}),
        ({"machine": {**NX, "compatible": list(NX_PARTS)}}, {**NX, "jetson": "any", "compatible": NX_PARTS}),
        ({"machine": NX}, {**NX, "memory_gib": None}),
    ],
)
def test_what_runs_is_not_refused(forge_plan, orin, facts, machine):
    path = forge_plan(**facts)
    trust_it(path)
    assert preflight(path, here=orin(**machine)).data == b"a plan"


def test_a_part_number_tells_modules_apart_that_have_one_text(forge_plan, orin):
    path = forge_plan(machine={**NX, "jetson": "acme", "compatible": list(NX_PARTS)})
    other = orin(**{**NX, "jetson": "acme", "compatible": ("nvidia,p3767-0001", "nvidia,tegra234")})
    message = refusal(InputError, path, other)
    assert "tuned on another device: Jetson Orin NX 16GB, and this is Jetson Orin NX 8GB" in message


def test_a_version_known_only_after_the_import_is_held_against_the_plan_too(forge_plan, orin):
    path, here = forge_plan(), orin(versions={"tensorrt": "?"})
    trust_it(path)
    plan = preflight(path, here=here)
    check_version(plan, "10.3.0.30", here)
    with pytest.raises(InputError, match=r"and here is TensorRT 8\.6\.2"):
        check_version(plan, "8.6.2", here)


# Files


def rewrite(path, **changes):
    """Forge a sidecar with a seal that fits."""
    side = artifacts.sidecar_path(path)
    value = {**json.loads(side.read_bytes()), **changes}
    del value["seal"]
    side.write_bytes(artifacts._sealed(value))


def test_the_files_are_looked_at_first_and_in_order(forge_plan, orin, tmp_path):
    """Each step mends the one before; everything that comes later is wrong all the time."""
    nowhere = orin(gpu=None, versions={})
    path = tmp_path / "net.engine"
    assert "net.engine does not exist" in refusal(InputError, path, nowhere)
    path = forge_plan()
    side = artifacts.sidecar_path(path)
    good = side.read_bytes()
    side.unlink()
    assert "has no sidecar net.plan.json" in refusal(InputError, path, nowhere)
    side.write_bytes(good)
    path.write_bytes(b"another plan")
    rewrite(path, schema=99)
    assert "has schema 99; this version reads 1" in refusal(InputError, path, nowhere)
    side.write_bytes(good)
    (tmp_path / "net.int8.onnx").write_bytes(b"a newer model")
    message = refusal(InputError, path, nowhere)
    assert "net.engine is damaged, or was replaced by another: it has 12 bytes, net.plan.json says 6" in message
    path.write_bytes(b"b plan")
    assert "damaged, or was replaced by another: its SHA-256 is" in refusal(InputError, path, nowhere)
    path.write_bytes(b"a plan")
    message = refusal(InputError, path, nowhere)
    assert "built from another net.int8.onnx than the one beside it" in message
    assert AGAIN in message
    (tmp_path / "net.int8.onnx").write_bytes(b"the model")
    assert "no TensorRT is installed" in refusal(MissingDependency, path, nowhere)


def test_a_sidecar_without_its_seal_or_of_something_else_is_refused(forge_plan, orin):
    path = forge_plan()
    side = artifacts.sidecar_path(path)
    side.write_bytes(side.read_bytes().replace(b'"8.7"', b'"8.6"'))
    assert "changed after it was written" in refusal(InputError, path, orin())
    assert "kind 'bench', not a plan" in refusal(InputError, forge_plan(kind="bench"), orin())
    path = forge_plan()
    rewrite(path, parents=[])
    assert "not a plan built from an ONNX file" in refusal(InputError, path, orin())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backend", "tensorrt-edge"),
        ("backend", None),
        ("backend_version", 10.3),
        ("precision", "int4"),
        ("precision", ["int8"]),
        ("compute_capability", 8.7),
        ("device", ["Orin"]),
        ("dla_core", True),
        ("dla_core", "0"),
        ("version_compatible", "yes"),
        ("hardware_compatible", 1),
        ("machine", "orin"),
        ("info", {"net": "cnn3"}),
    ],
)
def test_a_sidecar_may_say_anything_and_no_guess_is_made(forge_plan, orin, key, value):
    path = forge_plan(**{key: value})
    trust_it(path)
    assert f"net.plan.json says {key} = {value!r}" in refusal(InputError, path, orin())


@pytest.mark.parametrize(
    "facts",
    [
        {"device": "Orin\x1b[2J"},
        {"backend_version": "10.3.0\nmsn-deploy: all is well"},
        {"machine": {"arch": "aarch64", "jetson": "Jetson\x07"}},
        {"onnx": "net\r.onnx"},
    ],
)
def test_nothing_of_an_untrusted_sidecar_steers_the_terminal(forge_plan, orin, facts):
    message = refusal(InputError, forge_plan(**facts), orin())
    assert "which cannot be a name" in message
    assert message.replace("\n", "").isprintable()


def test_a_parent_elsewhere_and_a_name_with_a_space_are_shown_as_one_word(forge_plan, orin, tmp_path):
    path = forge_plan(onnx="../my net; rm -rf x.onnx", compute_capability="8.6")
    message = refusal(InputError, path, orin())
    assert "build-engine 'my net; rm -rf x.onnx' --precision int8" in message


def test_damaged_metadata_is_an_error_that_names_the_sidecar(forge_plan, orin):
    assert "net.plan.json holds damaged metadata" in refusal(InputError, forge_plan(info="{}"), orin())


def test_a_pipe_in_the_place_of_a_plan_is_not_read(orin, tmp_path):
    os.mkfifo(tmp_path / "net.engine")
    assert "is not a plain file" in refusal(InputError, tmp_path / "net.engine", orin())


def test_a_plan_of_another_size_is_not_read(forge_plan, orin):
    path = forge_plan()
    os.truncate(path, 4 << 30)  # without a block on the disk
    assert "it has 4294967296 bytes, net.plan.json says 6" in refusal(InputError, path, orin())
    os.truncate(path, 12 << 30)
    assert "net.engine has 12 GiB; engines of up to 4 GiB are read" in refusal(InputError, path, orin())


# Trust


def test_trusting_says_the_hash_and_lasts(forge_plan, orin, caplog):
    path = forge_plan()
    digest = hashlib.sha256(b"a plan").hexdigest()
    with caplog.at_level(logging.WARNING):
        preflight(path, here=orin(), trusting=True)
    assert digest in caplog.text
    assert trusted() == {digest}
    caplog.clear()
    preflight(path, here=orin())
    preflight(path, here=orin(), trusting=True)
    assert caplog.text == ""
    path = forge_plan(b"another plan")
    assert "`--trust`" in refusal(InputError, path, orin())


def test_a_plan_that_does_not_run_here_is_not_trusted_on_the_way(forge_plan, orin):
    with pytest.raises(InputError, match="holds code for"):
        preflight(forge_plan(compute_capability="8.6"), here=orin(), trusting=True)
    assert trusted() == frozenset()


@pytest.mark.parametrize(("core", "jetson", "words"), [(None, "NX", ""), (0, "NX", " --dla 0"), (0, "Nano", "")])
def test_the_command_that_builds_it_again_names_the_dla_core_where_there_is_one(forge_plan, orin, core, jetson, words):
    here = orin(jetson=f"NVIDIA Jetson Orin {jetson} Engineering Reference Developer Kit", compatible=())
    command = read_plan(forge_plan(dla_core=core)).rebuild(here)
    assert (" --dla 0" in command) is bool(words)
