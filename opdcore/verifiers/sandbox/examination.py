"""Runs a response's code and then the tests, and says whether all of them passed.

It runs inside the confined process, beside the code that it examines. So that the code cannot turn the
tests into passes by what it leaves behind, the tests are compiled before it runs, get builtins of their
own, find the functions and classes of the modules that they import as they were, and compare by
`comparisons`. The names of builtins that the code redefines are hidden from the tests, unless the tests use nothing else of
it. It knows no limits and no protocol.
"""

from __future__ import annotations

import ast
import builtins
import random
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from opdcore.verifiers.sandbox.comparisons import compare

NO_PYTHON = "a test of the prompt is no Python"
NO_MODULE = "a test of the prompt imports a module that the sandbox does not have"
MODULE = "response"
# No identifier, so that no code uses it by accident.
_COMPARE = "<compare>"
_HIDDEN = frozenset({"opdcore", "__main__", "ctypes", "_ctypes"})

# What would let code reach into the interpreter or into the code that examines it.
_FORBIDDEN_EVENTS = frozenset(
    {
        "gc.get_objects", "gc.get_referents", "gc.get_referrers",
        "sys.setprofile", "sys.settrace", "sys.monitoring.register_callback",
        "ctypes.dlopen", "ctypes.dlsym", "cpython.PyInterpreterState_New",
    }
)  # fmt: skip
_FORBIDDEN_MODULES = frozenset(
    {"_ctypes", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "_interpreters"}
)

Names = dict[str, Any]
Modules = dict[str, types.ModuleType]


class Finding(NamedTuple):
    """What came of an examination; `passed` is None where the tests are at fault."""

    passed: bool | None
    reason: str | None


class _Unusable(Exception):
    """The tests cannot be run, whatever the response is."""


def examine(code: str, tests: Sequence[str]) -> Finding:
    """Runs the code as a module of its own, then the tests, one after the other, over its names."""
    try:
        trees, programs = zip(*[_compiled(test) for test in tests], strict=True)
        imported = _import_for(trees)
    except _Unusable as unusable:
        return Finding(None, str(unusable))
    _hide()
    own_builtins = dict(vars(builtins))
    remembered, modules = _remembered(["builtins", "sys", *imported]), sys.modules
    module = types.ModuleType(MODULE)
    sys.addaudithook(_refuse)
    random.seed(0)
    fault = _fault_of(code, module)
    if fault is not None:
        return Finding(False, f"the code ends with {fault}")
    _restore(remembered, modules)
    names = _names_for(trees, vars(module), own_builtins)
    for number, program in enumerate(programs, start=1):
        fault = _fault_in(program, names)
        if fault is not None:
            return Finding(False, f"test {number} of {len(tests)} ends with {fault}")
    return Finding(True, None)


def _compiled(test: str) -> tuple[ast.Module, types.CodeType]:
    try:
        tree = ast.fix_missing_locations(_Comparing().visit(ast.parse(test)))
        return tree, compile(tree, "<test>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Unusable(NO_PYTHON) from error


class _Comparing(ast.NodeTransformer):
    """Puts each comparison of a test through `comparisons.compare`."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        operators: list[ast.expr] = [ast.Constant(type(one).__name__) for one in node.ops]
        names = ast.Tuple(operators, ast.Load())
        values = [names, node.left, *node.comparators]
        return ast.copy_location(ast.Call(ast.Name(_COMPARE, ast.Load()), values, []), node)


def _import_for(trees: Sequence[ast.Module]) -> list[str]:
    """Imports what the tests import, so that it is remembered as it is before the code runs."""
    names = sorted(set(_imported(trees)))
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise _Unusable(NO_MODULE) from error
    return names


def _imported(trees: Sequence[ast.Module]) -> Iterator[str]:
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (one.name for one in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and node.module != MODULE:
                yield node.module


def _remembered(names: Sequence[str]) -> list[tuple[str, types.ModuleType, Names]]:
    """The functions and classes of modules."""
    return [
        (name, module, {key: value for key, value in vars(module).items() if callable(value)})
        for name, module in ((name, sys.modules[name]) for name in names)
    ]


def _restore(remembered: list[tuple[str, types.ModuleType, Names]], modules: Modules) -> None:
    for name, module, content in remembered:
        modules[name] = module
        vars(module).update(content)


def _hide() -> None:
    """Takes this package out of what an import finds."""
    for name in [one for one in sys.modules if one.partition(".")[0] in _HIDDEN]:
        del sys.modules[name]


def _refuse(event: str, given: tuple[Any, ...]) -> None:
    """An audit hook, which nothing can remove."""
    if event in _FORBIDDEN_EVENTS or (event == "import" and given[0] in _FORBIDDEN_MODULES):
        raise RuntimeError("not allowed in the sandbox")


def _fault_of(code: str, module: types.ModuleType) -> str | None:
    try:
        program = compile(code, "<response>", "exec", dont_inherit=True)
    except BaseException as error:  # noqa: BLE001 - whatever the compiler finds is the code's fault
        return _name_of(error)
    sys.modules[MODULE] = module
    return _fault_in(program, vars(module))


def _fault_in(program: types.CodeType, names: Names) -> str | None:
    try:
        exec(program, names)  # noqa: S102 - what the sandbox is for
    except BaseException as error:  # noqa: BLE001 - SystemExit too: nothing ends the tests
        return _name_of(error)
    return None


def _name_of(error: BaseException) -> str:
    """The class's name alone: its text is made by the code."""
    return str.__str__(type.__dict__["__name__"].__get__(type(error)))[:60]


def _names_for(trees: Sequence[ast.Module], response: Names, own_builtins: Names) -> Names:
    """The names that tests start from."""
    shown = dict(response)
    used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if (used & response.keys()) - own_builtins.keys():
        shown = {name: value for name, value in shown.items() if name not in own_builtins}
    return shown | {"__name__": MODULE, "__builtins__": own_builtins, _COMPARE: compare}
