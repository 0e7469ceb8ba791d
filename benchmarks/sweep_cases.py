"""What the sweep exports: modules and functions of torch.nn, common functions of torch, idioms of real networks.

The operation of each case stands behind Conv-BN-ReLU, with random weights, BatchNorm statistics that are not those of
a fresh layer, and some negative gains. The names of torch.nn and torch.nn.functional are read from torch: one without a
recipe has to have a reason, or `uncovered()` raises.
"""

from __future__ import annotations

import inspect
import re

import sweep_functions
import sweep_idioms
import sweep_modules
import sweep_tensors
import torch.nn.functional as F
from sweep_nets import SHAPES, Case, FunctionBehind, ModuleBehind, dims_of
from torch import nn


def known_modules() -> list[str]:
    """Return the names of all modules of torch.nn."""
    return [name for name in dir(nn) if inspect.isclass(each := getattr(nn, name)) and issubclass(each, nn.Module)]


def known_functions() -> list[str]:
    """Return the names of all functions of torch.nn.functional, without those that serve torch alone."""
    return [
        name
        for name in dir(F)
        if callable(each := getattr(F, name))
        and not inspect.isclass(each)
        and not inspect.ismodule(each)
        and not name.startswith(("_", "has_torch_function", "handle_torch_function", "assert_", "boolean_", "Optional"))
    ]


def cases() -> list[Case]:
    """Return all cases, in a fixed order."""
    found = []
    for name, recipe in sweep_modules.RECIPES.items():
        dims = recipe.dims or dims_of(name)
        found.append(Case(f"nn.{name}", "module", lambda r=recipe, d=dims: ModuleBehind(r, d), SHAPES[dims]))  # type: ignore[misc]
    for kind, prefix, table in (("function", "F.", sweep_functions), ("tensor", "torch.", sweep_tensors)):
        for name, function in table.RECIPES.items():
            dims = dims_of(name.partition(" ")[0]) if kind == "function" else 2
            build = lambda f=function, d=dims: FunctionBehind(f, d)  # noqa: E731
            found.append(Case(prefix + name, kind, build, SHAPES[dims]))
    found += [Case(name, "idiom", build, shape) for name, (build, shape) in sweep_idioms.RECIPES.items()]
    return found


def uncovered() -> dict[str, str]:
    """Return why a module or function of torch.nn has no case, by name. Raises ValueError if there is no reason."""
    why: dict[str, str] = {}
    for prefix, known, table in (("nn.", known_modules(), sweep_modules), ("F.", known_functions(), sweep_functions)):
        with_recipe = {name.partition(" ")[0] for name in table.RECIPES}
        for name in known:
            if name in with_recipe:
                continue
            reasons = [reason for pattern, reason in table.WITHOUT.items() if re.fullmatch(pattern, name)]
            if not reasons:
                raise ValueError(f"{prefix}{name} has neither a recipe nor a reason.")
            why[prefix + name] = reasons[0]
    return why
