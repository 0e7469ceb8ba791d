"""Which TensorRT names does a source file use that some release lacks, without asking first?

What an expression is follows from where it comes from (`trt.Builder(...)`, `builder.create_network(...)`) or from its
name by convention (`trt`, `builder`, `network`, `config`, ..., also as `self._engine`). A name counts as asked for
below `if hasattr(x, "name")`, after `if not hasattr(x, "name"): return`, and in `getattr(x, "name", default)`.
Anywhere else a name that TensorRT has in some releases only is refused too, whatever it is looked up on.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache

from trt_api import MODULE, RELEASES, Names, api

BY_NAME = {
    "trt": MODULE,
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "logger": "ILogger",
    "timing": "ITimingCache",
}
BY_CALL = {
    "create_network": "INetworkDefinition",
    "create_builder_config": "IBuilderConfig",
    "create_optimization_profile": "IOptimizationProfile",
    "build_serialized_network": "IHostMemory",
    "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
    "create_engine_inspector": "EngineInspector",
    "get_layer": "ILayer",
    "get_error": "ParserError",
}
Key = tuple[str, str]
Keys = frozenset[Key]
NOTHING: Keys = frozenset()


def problems(source: str, tables: Mapping[str, Names] | None = None) -> list[str]:
    """Return one line per use of a TensorRT name that some release lacks.

    tables: release -> class -> names, for those to look at; the recorded ones if not given.
    """
    checker = _Checker(ast.parse(source), api() if tables is None else tables)
    checker.block(checker.tree.body, NOTHING)
    return [text for _, text in sorted(set(checker.found))]


@cache
def lacking(kind: str, name: str) -> tuple[str, ...]:
    """Return the releases in which that class has no such name."""
    return tuple(release for release in RELEASES if name not in api()[release].get(kind, ()))


@cache
def _in_some_releases_only() -> frozenset[str]:
    """Names of one word, such as `read` or `dims`, are left to those whose class is known."""
    by_release = [frozenset().union(*classes.values()) for classes in api().values()]
    some = frozenset().union(*by_release) - frozenset.intersection(*by_release)
    return frozenset(name for name in some if "_" in name)


class _Checker:
    def __init__(self, tree: ast.Module, tables: Mapping[str, Names]) -> None:
        self.tree = tree
        self.tables = tables
        self.found: list[tuple[int, str]] = []
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        self.uses_trt = "trt" in names
        self.assigned = {
            node.targets[0].id: kind
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if (kind := self.kind(node.value)) is not None
        }

    def kind(self, node: ast.AST) -> str | None:
        """Return the TensorRT class of an expression, None if it is not known to be one."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in BY_CALL:
                return BY_CALL[node.func.attr]
            return self.kind(node.func)  # trt.Runtime(logger)
        if isinstance(node, ast.Name):
            known = getattr(self, "assigned", {}).get(node.id)
            return known if known is not None else self._by_name(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr == "module":
                return MODULE
            if self.kind(node.value) == MODULE and node.attr in api()[RELEASES[-1]] | api()[RELEASES[0]]:
                return node.attr
            return self._by_name(node.attr)
        return None

    def _by_name(self, name: str) -> str | None:
        return BY_NAME.get(name.lstrip("_")) if self.uses_trt else None

    # Walking with what is known to exist

    def block(self, body: list[ast.stmt], asked: Keys) -> None:
        for statement in body:
            self.visit(statement, asked)
            if isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Return | ast.Raise | ast.Continue):
                asked |= _shown(statement.test, truth=False)

    def visit(self, node: ast.AST, asked: Keys) -> None:
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            self.visit(node.test, asked)
            for branch, truth in ((node.body, True), (node.orelse, False)):
                inside = asked | _shown(node.test, truth=truth)
                self.block(branch, inside) if isinstance(branch, list) else self.visit(branch, inside)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self.visit(value, asked)
                asked |= _shown(value, truth=isinstance(node.op, ast.And))
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for clause in node.generators:
                self.visit(clause.iter, asked)
                for test in clause.ifs:
                    self.visit(test, asked)
                    asked |= _shown(test, truth=True)
            for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
                self.visit(part, asked)
        else:
            self._use(node, asked)
            for _, value in ast.iter_fields(node):
                if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                    self.block(value, asked)
                else:
                    for child in value if isinstance(value, list) else [value]:
                        if isinstance(child, ast.AST):
                            self.visit(child, asked)

    def _use(self, node: ast.AST, asked: Keys) -> None:
        if isinstance(node, ast.Attribute):
            self._name(node, node.value, node.attr, (ast.unparse(node.value), repr(node.attr)) in asked)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            self._lookup(node, node.func.id, asked)

    def _lookup(self, node: ast.Call, function: str, asked: Keys) -> None:
        """Check `getattr`, `hasattr` and the names handed to `mask`."""
        if function == "mask":
            names = [each.value for each in node.args[1:] if isinstance(each, ast.Constant)]
        elif function in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
            names = [node.args[1].value]
            if function == "getattr" and len(node.args) == 2:
                key = (ast.unparse(node.args[0]), repr(names[0]))
                self._name(node, node.args[0], names[0], key in asked)
        elif function == "getattr" and len(node.args) == 2 and self.uses_trt:
            if (ast.unparse(node.args[0]), ast.unparse(node.args[1])) not in asked:
                self._report(node, f"{ast.unparse(node)}: nobody asked whether that name exists")
            return
        else:
            return
        kind = self.kind(node.args[0])
        for name in names if kind is not None else ():
            if len(lacking(kind, name)) == len(RELEASES):
                self._report(node, f"{ast.unparse(node)}: no release has {kind or 'the module'}.{name}")

    def _name(self, node: ast.AST, receiver: ast.expr, name: str, asked: bool) -> None:
        if name.startswith("__"):
            return
        kind = self.kind(receiver)
        if kind is None:
            own = isinstance(receiver, ast.Name) and receiver.id in ("self", "cls")
            if name in _in_some_releases_only() and not asked and not own:
                self._report(node, f"{ast.unparse(receiver)}.{name}: a TensorRT name that some releases lack")
            return
        absent = [release for release, classes in self.tables.items() if name not in classes.get(kind, ())]
        if len(absent) == len(RELEASES):
            self._report(node, f"{ast.unparse(receiver)}.{name}: no release has {kind or 'the module'}.{name}")
        elif absent and not asked:
            self._report(node, f"{ast.unparse(receiver)}.{name}: not in {', '.join(absent)}")

    def _report(self, node: ast.AST, text: str) -> None:
        self.found.append((node.lineno, f"line {node.lineno}: {text}"))  # type: ignore[attr-defined]


def _shown(test: ast.expr, *, truth: bool) -> Keys:
    """Return what exists if this condition is true (or false)."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _shown(test.operand, truth=not truth)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) == truth:
        return NOTHING.union(*(_shown(value, truth=truth) for value in test.values))
    if truth and isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "hasattr":
        return frozenset({(ast.unparse(test.args[0]), ast.unparse(test.args[1]))})
    return NOTHING
