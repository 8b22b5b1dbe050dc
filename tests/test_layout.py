"""The house rules that a machine can check: every op has all its files, kernels know no torch, files stay short."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

import xfercore.ops

ROOT = Path(__file__).resolve().parents[1]
OPS = sorted(xfercore.ops.__all__)
SOURCE_SUFFIXES = {".py", ".pyi", ".cpp", ".h", ".cu", ".cuh", ".toml", ".cmake", ".sh"}
SKIPPED_FOLDERS = {".git", ".venv", "build", "dist", "__pycache__", "node_modules"}
MAX_LINES = 400


@cache
def _files() -> list[Path]:
    """The project's own files: those that git knows, or all of them in an unpacked archive."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        found = [p for p in ROOT.rglob("*") if not SKIPPED_FOLDERS & set(p.relative_to(ROOT).parts)]
    return sorted(p for p in found if p.is_file())


def _sources() -> list[Path]:
    return [p for p in _files() if p.suffix in SOURCE_SUFFIXES or p.name in ("Makefile", "CMakeLists.txt")]


def _module(op: str) -> str:
    """The module of the public function, which is named after the op, or holds several of a family."""
    package, module = getattr(xfercore.ops, op).__module__.rsplit(".", 1)
    assert package == "xfercore.ops", op
    return module


def _family(op: str) -> str:
    """Ops that work on each other's results share a definition, and carry its name instead of one each."""
    package, module = getattr(xfercore.reference, op).__module__.rsplit(".", 1)
    assert package == "xfercore.reference", op
    return module


FAMILIES = {name: [op for op in OPS if _family(op) == name] for name in sorted({_family(op) for op in OPS})}


def _bindings(op: str) -> str:
    """The text of the bindings: one file, or several where the family has several modules or ops."""
    found = sorted((ROOT / "csrc/bindings").glob(f"{_family(op)}*.cpp" if _siblings(op) else f"{op}.cpp"))
    return "\n".join(path.read_text() for path in found)


def _siblings(op: str) -> list[str]:
    return [other for other in FAMILIES[_family(op)] if other != op]


def _has_no_kernel(op: str) -> bool:
    """Ops that only arrange torch's own kernels say so in the head of their binding."""
    head = (ROOT / f"csrc/bindings/{_family(op)}.cpp").read_text()[:600]
    return "no kernel of its own" in " ".join(head.replace("//", " ").split())


def test_there_are_files_to_check() -> None:
    assert len(_sources()) > 50 and len(OPS) >= 11 and len(FAMILIES) >= 5


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_all_its_files(op: str) -> None:
    family = _family(op)
    for path in (
        f"xfercore/ops/{_module(op)}.py",
        f"xfercore/ops/{family}.py",
        f"xfercore/reference/{family}.py",
        f"csrc/bindings/{family}.cpp",
        f"tests/ops/test_{family}.py",
    ):
        assert (ROOT / path).is_file(), f"{op} lacks {path}"
    folder = ROOT / "csrc/ops" / family
    if _has_no_kernel(op):
        assert not folder.exists(), f"the binding of {op} says that it has no kernel, but {folder} exists"
        return
    assert (folder / f"{family}.h").is_file() and (folder / f"{family}_math.h").is_file()
    assert list(folder.glob(f"{family}*_cpu.cpp")), f"{op} lacks a CPU kernel"
    assert list(folder.glob(f"{family}*_cuda.cu")), f"{op} lacks a CUDA kernel"
    assert (ROOT / f"tests/simt/test_simt_{family}.py").is_file(), (
        f"{op} lacks tests/simt/test_simt_{family}.py"
    )


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_tests_of_its_own(op: str) -> None:
    """In a file that carries its name, its family's or a sibling's, and calls it."""
    folder, names = ROOT / "tests/ops", (op, *_siblings(op))
    paths = [folder / f"test_{name}.py" for name in names] + list(folder.glob(f"test_{_family(op)}*.py"))
    assert any(re.search(rf"\b{op}\(", path.read_text()) for path in paths if path.is_file()), op


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_where_its_name_says(family: str) -> None:
    """No module of ops, reference or test file of an op that belongs to no public function."""
    modules = {_module(op) for op in FAMILIES[family]}
    assert family in modules, f"none of {FAMILIES[family]} lives in xfercore/ops/{family}.py"
    if len(FAMILIES[family]) == 1:
        assert FAMILIES[family] == [family]
    for op in OPS:
        assert _module(op) not in modules or _family(op) == family, f"{op} lives in a module of {family}"


@pytest.mark.parametrize("folder", ["ops", "reference"])
def test_no_module_without_a_public_function(folder: str) -> None:
    known = {_module(op) for op in OPS} if folder == "ops" else {*FAMILIES, "philox"}
    for path in (ROOT / "xfercore" / folder).glob("*.py"):
        assert path.stem.startswith("_") or path.stem in known, f"{path} holds no public function"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_a_benchmark(op: str) -> None:
    folder = ROOT / "benchmarks/ops"
    if (folder / f"bench_{_family(op)}.py").is_file():
        return
    # An op without a kernel may be measured beside the one that it folds in.
    assert _has_no_kernel(op), f"{op} lacks benchmarks/ops/bench_{_family(op)}.py"
    assert any(re.search(rf"\b{op}\b", path.read_text()) for path in folder.glob("bench_*.py"))


@pytest.mark.parametrize("op", OPS)
def test_op_reference_and_schema_carry_the_same_names(op: str) -> None:
    public = _arguments(ROOT / f"xfercore/ops/{_module(op)}.py", op)
    reference = ROOT / f"xfercore/reference/{_family(op)}.py"
    assert public == _arguments(reference, op)
    # An op that its definition calls a case of another has that one's schema.
    called = {node.func.id for node in ast.walk(_function(reference, op)) if _is_plain_call(node)}
    names = [op, *(name for name in _siblings(op) if name in called)]
    # Or the head of the binding says that they are one.
    head = _bindings(op)[:600]
    names += [name for name in _siblings(op) if re.search(rf"{name} and {op}, which is the same op", head)]
    assert any(re.search(rf'"{name}(_backward)?\(', _bindings(op)) for name in names), f"no schema of {op}"


@pytest.mark.parametrize("module", sorted({_module(op) for op in OPS}))
def test_every_torch_op_that_a_module_calls_is_in_its_bindings(module: str) -> None:
    bindings = _bindings(next(op for op in OPS if _module(op) == module))
    called = set(
        re.findall(r"torch\.ops\.xfercore\.(\w+)\(", (ROOT / f"xfercore/ops/{module}.py").read_text())
    )
    assert called
    for name in called:
        assert re.search(rf'"{name}\(', bindings), (
            f"xfercore/ops/{module}.py calls {name}, which has no schema"
        )


def _is_plain_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _function(path: Path, name: str) -> ast.FunctionDef:
    (found,) = (
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name
    )
    return found


def _arguments(path: Path, function: str) -> list[str]:
    arguments = _function(path, function).args
    defaults = [ast.unparse(d) if d else "" for d in (*arguments.defaults, *arguments.kw_defaults)]
    return [a.arg for a in (*arguments.args, *arguments.kwonlyargs)] + defaults


def test_no_op_folder_without_a_public_function() -> None:
    for folder in sorted((ROOT / "csrc/ops").iterdir()):
        assert folder.name in FAMILIES, f"{folder} belongs to no op in xfercore.ops"
        for path in folder.iterdir():
            assert path.name.startswith(folder.name), f"{path} does not carry the name of its op"


@pytest.mark.parametrize("folder", ["csrc/ops", "csrc/common"])
def test_kernels_know_no_torch(folder: str) -> None:
    include = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|caffe2)\b')
    checked = [p for p in _sources() if p.is_relative_to(ROOT / folder)]
    assert checked
    for path in checked:
        text = path.read_text()
        assert not include.search(text), f"{path.relative_to(ROOT)} includes torch"
        assert not re.search(r"\b(at|c10|torch)::", text), f"{path.relative_to(ROOT)} names torch"


def test_bindings_hold_no_kernel() -> None:
    for path in (ROOT / "csrc/bindings").iterdir():
        text = path.read_text()
        assert "__global__" not in text and "#pragma omp" not in text, path.name


def test_long_files_give_a_reason() -> None:
    for path in _sources():
        text = path.read_text()
        lines = text.count("\n")
        assert lines <= MAX_LINES or "long file:" in text, (
            f"{path.relative_to(ROOT)} has {lines} lines; split it, or say why not in a line with 'long file:'"
        )


def test_every_source_file_says_what_it_is() -> None:
    for path in _sources():
        if path.suffix == ".py" and path.stat().st_size:
            assert ast.get_docstring(ast.parse(path.read_text())), (
                f"{path.relative_to(ROOT)} has no docstring"
            )
        elif path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            assert path.read_text().startswith("//"), f"{path.relative_to(ROOT)} has no head"


# Written in pieces, so that this file passes its own check.
FORBIDDEN = {
    "unfinished work": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a path of one machine": r"(?<![\w.])/(wo" + r"rk|ro" + r"ot|ho" + r"me/\w+)/",
    "an issue's number": r"\b[Ii]ss" + r"ue #?\d+\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_forbidden_words(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    for path in _sources() + [p for p in _files() if p.suffix == ".md"]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not pattern.search(line), f"{path.relative_to(ROOT)}:{number} holds {what}: {line.strip()}"


def test_one_way_of_dependence() -> None:
    """xfercore never imports xferkit; neither imports benchmarks or tests."""
    for package, forbidden in (
        ("xfercore", ("xferkit", "benchmarks", "tests", "numpy", "scipy", "einops")),
        ("python_api/xferkit", ("benchmarks", "tests")),
    ):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    assert name.split(".")[0] not in forbidden, f"{path.relative_to(ROOT)} imports {name}"


def test_public_functions_are_documented() -> None:
    for op in OPS:
        text = getattr(xfercore.ops, op).__doc__
        for part in ("Args:", "Returns:", "Raises:", ".. math::", "float32"):
            assert part in text, f"the docstring of {op} lacks {part!r}"
