"""The house rules: floors, budgets, what an import loads."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tinygrad_rnn"

FLOORS = {
    "errors": 1, "arrays": 1, "op": 1, "graph": 1, "scope": 1, "files": 1, "archive": 1,
    "memory": 1,
    "ops": 2, "inspection": 2,
    "autodiff": 3,
    "tensor": 4,
    "functional": 5, "transforms": 5, "module": 5,
    "nn": 6, "optim": 6, "data": 6, "vocabulary": 6,
    "train": 7, "bptt": 7, "testing": 7, "compiler": 7,
}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imported(path):
    """Return the modules of the package that a file imports at run time, by dotted name."""
    tree = ast.parse(path.read_text())
    here = ["tinygrad_rnn", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("tinygrad_rnn")}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            target = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            if target.split(".")[0] != "tinygrad_rnn":
                continue
            for a in node.names:
                inner = PACKAGE / "/".join([*target.split(".")[1:], a.name])
                is_module = inner.with_suffix(".py").exists() or (inner / "__init__.py").exists()
                found.add(f"{target}.{a.name}" if is_module else target)
    return {name.removeprefix("tinygrad_rnn").lstrip(".") for name in found} - {""}


def test_every_module_stands_on_a_floor():
    assert {module_name(f).split(".")[0] for f in FILES} - {""} == set(FLOORS)


@pytest.mark.parametrize("path", [f for f in FILES if module_name(f)], ids=module_name)
def test_a_module_imports_from_its_floor_or_below(path):
    own = FLOORS[module_name(path).split(".")[0]]
    above = {name for name in imported(path) if FLOORS[name.split(".")[0]] > own}
    assert not above


def test_no_imports_run_in_a_circle():
    edges = {module_name(f): imported(f) for f in FILES if module_name(f)}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in done:
            return
        path.append(name)
        for target in sorted(edges.get(name, ())):
            visit(target)
        path.pop()
        done.add(name)

    for name in sorted(edges):
        visit(name)


def test_viz_is_imported_by_nothing_here():
    for f in FILES:
        assert "import viz" not in f.read_text()
        assert "from viz" not in f.read_text()


def code_lines(path):
    """Count lines with code: neither blank nor comment nor docstring."""
    source = path.read_text()
    skipped = (
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    )  # fmt: skip
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_the_way_from_backward_to_the_ground_is_short():
    files = [PACKAGE / f"{name}.py" for name in ("op", "graph", "autodiff", "tensor")]
    assert sum(code_lines(f) for f in files) <= 450


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "viz").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 500


def test_importing_loads_numpy_and_nothing_else_of_others():
    code = (
        "import sys; import numpy; before = set(sys.modules); import tinygrad_rnn; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {"tinygrad_rnn", *sys.stdlib_module_names}
    assert {
        m for m in out.stdout.split() if not m.startswith(("numpy", "_cython", "cython"))
    } <= own


def test_a_new_elementwise_op_takes_five_lines():
    source = (PACKAGE / "ops.py").read_text()
    start = source.index("tanh = primitive")
    declared = source[start : source.index("\n\n", start)]
    assert "tanh.vjp" in declared
    assert len(declared.splitlines()) <= 5
