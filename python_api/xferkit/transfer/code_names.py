"""What a function holds, and what its bytecode names: globals with what follows them, modules, what it assigns."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, NamedTuple

__all__ = ["CodeNames", "Import", "all_code", "cell_content", "held_by", "names_of"]

_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_FILLERS = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL"})


class Import(NamedTuple):
    """An import statement: of `module`, `level` packages above, with the `names` behind ``import``."""

    module: str
    level: int
    names: tuple[str, ...]


@dataclass
class CodeNames:
    """Names in the code of a function and of all that is defined inside it.

    Attributes:
        chains: ``("helper", "scale")`` for ``helper.scale``, each once.
        imports: statements inside the function.
        stored_globals: globals that it assigns.
        stored_cells: variables of the functions around it that it assigns.
        stored_attributes: attributes of anything that it assigns.
    """

    chains: dict[tuple[str, ...], None] = field(default_factory=dict)
    imports: dict[Import, None] = field(default_factory=dict)
    stored_globals: set[str] = field(default_factory=set)
    stored_cells: set[str] = field(default_factory=set)
    stored_attributes: set[str] = field(default_factory=set)


def all_code(code: CodeType) -> Iterator[CodeType]:
    """The code and that of all functions, classes and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from all_code(constant)


def names_of(code: CodeType) -> CodeNames:
    """What `code` names, wherever inside it."""
    found = CodeNames()
    for inner in all_code(code):
        _read(inner, found)
    return found


def held_by(function: FunctionType) -> tuple[dict[str, Any], dict[str, Any]]:
    """The defaults of a function by argument, and what the variables of its closure hold by name."""
    code, defaults = function.__code__, function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount][code.co_argcount - len(defaults) :]
    named = {**dict(zip(arguments, defaults, strict=True)), **(function.__kwdefaults__ or {})}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    return named, {name: cell_content(cell) for name, cell in cells}


def cell_content(cell: Any) -> Any:
    """What a variable of a closure holds; None where its name is bound later."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _read(code: CodeType, found: CodeNames) -> None:
    chain: tuple[str, ...] = ()
    before: list[object] = [None, None]  # an import takes its level and its names from the two before it
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name in _FILLERS:
            continue
        if chain and name in _ATTRIBUTES:
            chain = (*chain, value)
        else:
            if chain:
                found.chains[chain] = None
            chain = (value,) if name in _LOADS else ()
        if name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            found.stored_globals.add(value)
        elif name == "STORE_DEREF":
            found.stored_cells.add(value)
        elif name == "STORE_ATTR":
            found.stored_attributes.add(value)
        elif name == "IMPORT_NAME":
            level, names = before
            found.imports[
                Import(
                    value, level if isinstance(level, int) else 0, names if isinstance(names, tuple) else ()
                )
            ] = None
        before = [before[1], value]
    if chain:
        found.chains[chain] = None
