"""What the docstrings and the README show is run."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import tinygrad_rnn
import viz

ROOT = Path(__file__).resolve().parent.parent

MODULES = [
    info.name
    for package in (tinygrad_rnn, viz)
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]


@pytest.mark.parametrize("name", ["tinygrad_rnn", "viz", *MODULES])
def test_docstrings_run(name):
    if name in ("tinygrad_rnn.compiler.prelude", "tinygrad_rnn.compiler.products"):
        pytest.importorskip("numba", reason="kernels need numba")
    module = importlib.import_module(name)
    assert module.__doc__
    failed, _ = doctest.testmod(module)
    assert not failed


def test_the_readme_runs(tmp_path, monkeypatch):
    """Every Python block, one after the other, in one session; ``# ->`` says what a line gives."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    session = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), session)
        for line in block.splitlines():
            shown = re.fullmatch(r"(.+?)\s+# -> (.+)", line)
            if shown:
                assert repr(eval(shown[1], session)) == shown[2]
    picture = (ROOT / "examples" / "unrolled.dot").read_text()
    assert (tmp_path / "unrolled.dot").read_text() == picture  # the one at the top, as .svg


def test_the_readme_is_complete():
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"`[^`]*`", "", text)
    assert not re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", prose)  # no placeholder
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
