"""Does this plan run here? Answered before TensorRT sees a byte of it.

A plan belongs to one version of TensorRT and one compute capability, and its kernels were chosen by timing them on one
device. TensorRT itself says "version tag does not match" at best, and runs a plan of a sister device slowly without a
word. A device other than the plan's is refused, not warned of: a latency measured on it would describe neither.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msn_deploy.core.artifacts import sha256_of
from msn_deploy.core.errors import InputError, MissingDependency, MissingDevice
from msn_deploy.engine.plan import TITLES, Here, Plan, read_plan, what_is_here
from msn_deploy.engine.trust import trust, trust_list, trusted
from msn_deploy.machine.device import target_of
from msn_deploy.machine.jetpacks import numbers_of
from msn_deploy.machine.targets import sm

_LOG = logging.getLogger(__name__)
# Version-compatible plans load in later versions of the same major number, and across these: support matrix of 11.4.
_NEXT_MAJOR = ((8, 10), (10, 11))
_AMPERE = (8, 0)


def preflight(path: Path, *, here: Here | None = None, trusting: bool = False, plugins: Sequence[Path] = ()) -> Plan:
    """Return the plan if it is complete, of the model beside it, made for this machine, and trusted.

    Checked in that order; nothing of TensorRT or CUDA is imported. here: found out if not given. trusting: add the plan
    to the local list, and say so. plugins: libraries with operators that it needs. Raises InputError, or
    MissingDependency or MissingDevice for what is not here at all.
    """
    plan = read_plan(path)
    here = here or what_is_here()
    check_fits(plan, here)
    _check_plugins(plan, plugins)
    if plan.sha256 not in trusted():
        if not trusting:
            raise InputError(
                f"{path} is not trusted (SHA-256 {plan.sha256[:12]}...): a plan is native code, and this one was not "
                f"built here.\nIf you know who built it, add `--trust`. {_again(plan, here)}"
            )
        _LOG.warning("trusting %s from now on: SHA-256 %s goes into %s", path, plan.sha256, trust_list())
        trust(plan.sha256, path.name)
    return replace(plan, plugins=tuple(plugins))


def check_fits(plan: Plan, here: Here) -> None:
    """Raise as `preflight` does if a plan is of another model than the one beside it, or made for another machine."""
    _check_parent(plan, here)
    version = _installed(plan, here)
    if version != "?":
        check_version(plan, version, here)
    check_device(plan, here)


def timed_under(plan: Plan, here: Here) -> tuple[str, str] | None:
    """Return both names if the kernels of a plan were timed under another L4T or driver than the one here.

    It loads all the same. TensorRT-RTX chooses its kernels when it loads a plan.
    """
    of_both = (("L4T", plan.l4t, here.machine.l4t), ("driver", plan.driver, here.machine.driver))
    found = [(f"{what} {built}", f"{what} {now}") for what, built, now in of_both if built and now and built != now]
    return found[0] if found and not plan.is_rtx else None


def check_version(plan: Plan, version: str, here: Here) -> None:
    """Raise InputError if this version of the plan's TensorRT does not load it."""
    built, found = numbers_of(plan.backend_version), numbers_of(version)
    shared = min(len(built), len(found))  # packages leave the build number out, TensorRT itself tells it
    if built[:shared] == found[:shared]:
        return
    if plan.version_compatible and not plan.is_rtx:
        if found > built and (found[0] == built[0] or (built[0], found[0]) in _NEXT_MAJOR):
            return
        why = "a version-compatible plan loads in later versions of its major number, or from 8 in 10 and from 10 in 11"
    else:
        why = "a plan loads only in the version that built it"
    title = TITLES[plan.backend]
    raise InputError(
        f"{plan.path} was built by {title} {plan.backend_version}, and here is {title} {version}: {why}.\n"
        + _both(plan, here)
    )


def _check_parent(plan: Plan, here: Here) -> None:
    beside = plan.path.with_name(plan.onnx.file or "?")
    if os.path.isfile(beside) and sha256_of(beside) != plan.onnx.sha256:
        raise InputError(
            f"{plan.path} was built from another {beside.name} than the one beside it: an engine of an older model.\n"
            f"{_again(plan, here)}"
        )


def _check_plugins(plan: Plan, given: Sequence[Path]) -> None:
    missing = sorted(set(plan.needs) - {path.name for path in given})
    if missing:
        words = " ".join(f"--plugins {name}" for name in missing)
        raise InputError(
            f"{plan.path} was built with operators of {', '.join(missing)}.\nGive what it needs to load: `{words}`."
        )
    if given and not plan.needs:
        raise InputError(f"{plan.path} was built without plugins.\nLeave `--plugins` out.")


def _installed(plan: Plan, here: Here) -> str:
    """Return the version of the plan's TensorRT. Raises MissingDependency if only the other, or none, is installed."""
    if plan.backend in here.versions:
        return here.versions[plan.backend]
    title = TITLES[plan.backend]
    if here.versions:
        other = TITLES[next(iter(here.versions))]
        raise MissingDependency(f"{plan.path} is a plan of {title}, which {other} cannot load.\n{_both(plan, here)}")
    raise MissingDependency(
        f"{plan.path} needs {title} {plan.backend_version}, and no TensorRT is installed here.\n"
        f"`msn-deploy doctor` shows what is missing. On this machine you can run {plan.onnx.file}."
    )


def check_device(plan: Plan, here: Here) -> None:
    """Raise InputError if a plan was made for another device, MissingDevice if this machine has none that runs it."""
    built, found = plan.compute_capability, here.compute_capability
    if built and found and built != found:
        if not plan.hardware_compatible:
            raise InputError(
                f"{plan.path} holds code for {sm(built)}, and this GPU is {sm(found)}.\n{_both(plan, here)}"
            )
        if numbers_of(found) < _AMPERE:
            raise InputError(
                f"{plan.path} runs on any GPU since Ampere (sm_80), and this one is {sm(found)}.\n{_both(plan, here)}"
            )
    if not plan.is_rtx and plan.arch and plan.arch != here.machine.arch:
        raise InputError(
            f"{plan.path} was built on {plan.arch}, and this machine is {here.machine.arch}.\n{_both(plan, here)}"
        )
    other = _other_device(plan, here)
    if other is not None:
        raise InputError(
            f"{plan.path} was tuned on another device: {other[0]}, and this is {other[1]}.\n{_both(plan, here)}"
        )
    if here.gpu is None:
        raise MissingDevice(
            f"{plan.path} runs on a GPU ({plan.title}), and no NVIDIA driver answers here with one.\n"
            f"`msn-deploy doctor` shows what is here. On this machine you can run {plan.onnx.file}."
        )
    if plan.dla_core is not None:
        target = target_of(here.machine)
        cores = target.dla_cores if target else 0
        unknown = target is None and plan.dla_core >= 0 and here.machine.arch == "aarch64"  # TensorRT will tell
        if not unknown and not 0 <= plan.dla_core < cores:
            raise MissingDevice(
                f"{plan.path} was built for DLA core {plan.dla_core}, and {here.jetson or here.gpu.name} has "
                f"{cores or 'no'} DLA cores.\n{_both(plan, here)}"
            )


def _other_device(plan: Plan, here: Here) -> tuple[str, str] | None:
    """Return both names if the kernels were timed on another device than this one.

    Jetsons go by their module, since all Orins call their GPU "Orin". Where the module is
    unknown (in a container, on a carrier with a text of its own), the GPU decides: unknown is not another module.
    """
    if plan.is_rtx or plan.hardware_compatible:
        return None
    built, found = plan.device, here.gpu.name if here.gpu else None
    if plan.jetson and here.jetson:
        built, found = plan.jetson, here.jetson
    return (built, found) if built and found and built != found else None


def _both(plan: Plan, here: Here) -> str:
    return f"Built for {plan.title}; here: {here.title}.\n{_again(plan, here)}"


def _again(plan: Plan, here: Here) -> str:
    return f"Build it here: {plan.rebuild(here)}"
