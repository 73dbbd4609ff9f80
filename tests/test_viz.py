"""A drawing shows what was recorded, in the same bytes every time, with and without ``dot``."""

import doctest
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import graphviz
import numpy as np
import pytest

import viz
from tinygrad_rnn import Parameter, Tensor, grad, mark, nn, no_grad, record
from tinygrad_rnn.ops import concat, sigmoid, tanh
from tinygrad_rnn.scope import Call, Place, at
from viz import drawing, labels, program

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="Graphviz's program dot is not installed"
)
posix = pytest.mark.skipif(os.name != "posix", reason="the stub for dot is a shell script")
ROOT = Path(__file__).parents[1]
NASTY = [
    'say "h"', "back\\slash", "ends with \\", "\\N \\G \\l", '\\"', "<b>bold</b>", "<lambda>",
    "two\nlines", "a:b:c", "&amp; &#60; & <", "σ(x)→ŷ", "a -> b; c [x=1] {}", "digraph", "'",
    "nul \0 and \x1b", "half \ud800", "100%", "1.5",
]  # fmt: skip


def nodes(source):
    """Return the attributes of each node in a DOT text, by its id."""
    found = re.findall(r'^\t+("[^"]*"|\S+) \[(.*)\]$', source, re.M)
    return {i.strip('"'): a for i, a in found if i not in ("graph", "node", "edge")}


def edges(source):
    return [
        (a.strip('"'), b.strip('"'), rest)
        for a, b, rest in re.findall(r'^\t("[^"]*"|\S+) -> ("[^"]*"|\S+)(.*)$', source, re.M)
    ]


def texts(svg):
    """Return the lines of text of each node in an SVG, as one string per node."""
    space = "{http://www.w3.org/2000/svg}"
    groups = ElementTree.fromstring(svg).iter(f"{space}g")
    return [
        "\n".join(["".join(line.itertext()) for line in g.findall(f"{space}text")])
        for g in groups
        if g.get("class") == "node"
    ]


def unrolled(steps=3, layers=("fwd",), path="net"):
    """Return the loss of a hand-made recurrence, and its parameters."""
    W = Parameter(np.eye(2), name="W_h")
    call, total = Call(path, steps), 0.0
    for k, direction in enumerate(layers):
        h = Tensor(np.ones((1, 2)), name="h0")
        for t in range(steps):
            with at(Place(call, k, direction, t)):
                h = tanh(h @ W + 0.5)
                mark(h=h)
        total = total + h.sum()
    mark(loss=total)
    return total, W


@pytest.fixture
def without_dot(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def stub_dot(monkeypatch, tmp_path):
    """Return what puts a shell script in the place of ``dot``."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "dot").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "dot").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


@pytest.mark.parametrize("module", [drawing, labels, program])
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0


# --- what is drawn


def test_golden_text_of_a_small_expression():
    x, w = Tensor([1.0, 2.0], name="x"), Parameter([3.0, 4.0], name="w")
    y = sigmoid(x * w) - 0.5
    mark(y=y)
    assert viz.draw(y.sum()).source == (
        "// nodes=7, edges=6\n"
        "digraph tinygrad_rnn {\n"
        "\tgraph [bgcolor=white fontname=Helvetica labeljust=l newrank=true rankdir=LR]\n"
        '\tnode [fillcolor=white fontname=Helvetica shape=box style="rounded,filled"]\n'
        '\tedge [arrowsize=0.7 color="#444444" fontsize=10 labeldistance=1.6]\n'
        '\tx [label="x\\n(2,)" fillcolor="#e4e4e4" style=filled]\n'
        '\tw [label="w\\n(2,)" color="#0072b2" fillcolor="#cfe6f5" style="filled,bold"]\n'
        '\tmul [label="×\\n(2,)"]\n'
        '\tsigmoid [label="sigmoid\\n(2,)"]\n'
        '\tconstant [label=0.5 height=0.3 margin=0 shape=plaintext style="" width=0]\n'
        '\ty [label="y: −\\n(2,)" fillcolor="#ffedb3"]\n'
        '\tsum [label="sum\\n()" color="#d55e00" penwidth=2 peripheries=2]\n'
        "\tx -> mul\n"
        "\tw -> mul [weight=0]\n"
        "\tmul -> sigmoid\n"
        "\tsigmoid -> y [headlabel=1]\n"
        "\tconstant -> y [headlabel=2]\n"
        "\ty -> sum\n"
        "}\n"
    )


def test_each_time_step_is_a_frame_and_each_parameter_one_node():
    loss, _ = unrolled(steps=3)
    source = viz.draw(loss).source
    frames = re.findall(r"subgraph \w+ \{\n(.*?)\n\t\}", source, re.S)
    assert [re.search(r'label="(.*?)"', f)[1] for f in frames] == ["t = 1", "t = 2", "t = 3"]
    for t, frame in enumerate(frames):
        assert list(nodes(frame)) == [
            f"net.L0.fwd.T{t}.{name}" for name in ("matmul", "constant", "add", "h")
        ]
    assert source.count('label="W_h') == 1
    assert [b for a, b, _ in edges(source) if a == "W_h"] == [
        f"net.L0.fwd.T{t}.matmul" for t in range(3)
    ]
    assert [(a, b) for a, b, rest in edges(source) if "invis" in rest] == [
        (f"net.L0.fwd.T{t}.h", f"net.L0.fwd.T{t + 1}.{name}")
        for t in range(2)
        for name in ("matmul", "constant")
    ]


def test_frames_say_the_layer_and_the_call_where_there_are_several():
    first, _ = unrolled(steps=1, layers=("fwd", "rev"), path="encoder")
    second, _ = unrolled(steps=1, path="encoder")
    titles = re.findall(r'label="(\S+, t = \d)"', viz.draw([first, second]).source)
    assert titles == ["encoder.L0.fwd, t = 1", "encoder.L1.rev, t = 1", "encoder#2.L0.fwd, t = 1"]


def test_a_parameter_made_inside_a_step_stands_outside_its_frame():
    with at(Place(Call("", 1), 0, "fwd", 0)):
        y = Parameter([1.0], name="w") * Tensor([2.0])
    frame = viz.draw(y).source.split("subgraph")[1].split("}")[0]
    assert list(nodes(frame)) == ["L0.fwd.T0.constant", "L0.fwd.T0.mul"]


def test_the_drawn_graph_is_the_recorded_one():
    loss, W = unrolled(steps=3)
    drawn = [(a, b) for a, b, rest in edges(viz.draw(loss).source) if "invis" not in rest]
    assert len(drawn) == len(set(drawn)) == 3 * 5 + 3  # 2 + 2 + 1 a step; sum, add
    x = Tensor(3.0, requires_grad=True, name="x")
    assert [e[:2] for e in edges(viz.draw(x * x).source)] == [("x", "mul"), ("x", "mul")]
    assert "W_h" in nodes(viz.draw(grad(loss, W, create_graph=True)).source)  # a backward pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *[(0.5, "0.5"), (2, "2"), (np.float32(0.1), "0.1"), (True, "True"), (1e-9, "1e-09")],
        *[(float("nan"), "nan"), (float("-inf"), "-inf"), (1 + 2j, "1+2j"), (123456, "123456")],
    ],
)
def test_a_number_shows_its_value(value, shown):
    with record():
        source = viz.draw(Tensor(value) * Tensor(value)).source
    assert f"label={shown} " in source.replace('"', "")
    assert labels.label(Tensor(value, name="eta")) == f"eta\\n{shown}"


def test_operations_are_said_as_a_person_writes_them():
    x = Tensor(np.ones((4, 6)), requires_grad=True)
    y = Tensor(np.ones((4, 6)), requires_grad=True)
    shown = {
        "×": x * y, "−": x - y, "/": x / y, "^": x**y, "+": x + y, "neg": -x, "tanh": tanh(x),
        "[0]": x[0], "[1:3]": x[1:3], "[::2]": x[::2], "[..., 0]": x[..., 0], "sum": x.sum(),
        "sum axis=1": x.sum(1), "sum axis=0, 1 keepdims=True": x.sum((0, 1), keepdims=True),
        "reshape": x.reshape(6, 4), "concat axis=1": concat(x, y, axis=1),
        "astype dtype=float32": x.astype(np.float32),
    }  # fmt: skip
    assert {k: labels.label(t).split("\\n")[0] for k, t in shown.items()} == {k: k for k in shown}
    assert labels.positions(x - y) == ["1", "2"]
    assert labels.positions(concat(x, y, x)) == ["1", "2", "3"]
    assert labels.positions(x + y) == [None, None]


def test_detach_is_a_dashed_arrow_from_a_source_that_is_drawn():
    w = Parameter([1.0], name="w")
    h = w * 2
    mark(h=h)
    cut = h.detach()
    assert ("h", "h_2", " [style=dashed]") in edges(viz.draw([h, cut * w]).source)
    assert "filled,dashed" in nodes(viz.draw([h, cut]).source)["h_2"]
    assert "style=dashed" not in viz.draw(cut * w).source  # the source is not in the graph
    del h
    assert "style=dashed" not in viz.draw(cut * w).source  # nor alive
    assert "filled,dashed" in viz.draw(cut * w).source


def test_what_was_not_recorded_is_one_node_and_a_caption():
    w = Parameter([1.0], name="w")
    assert "no op was recorded" not in viz.draw(w).source
    with no_grad():
        y = w * 2
    source = viz.draw(y).source
    assert list(nodes(source)) == ["constant"]
    assert "no op was recorded" in source
    with record():
        assert "no op was recorded" not in viz.draw(Tensor(1.0) * 2).source


@pytest.mark.parametrize(
    ("wrong", "name"), [(1.0, "float"), (np.ones(2), "ndarray"), (nn.RNN(2, 3), "RNN"), (None, "")]
)
def test_anything_but_tensors_is_refused(wrong, name):
    with pytest.raises(TypeError, match=f"a Tensor or a list of Tensors is needed, not {name}"):
        viz.draw(wrong)
    with pytest.raises(TypeError, match=f"not {name or 'NoneType'} at index 1"):
        viz.draw([Tensor(1.0), wrong])
    with pytest.raises(ValueError, match="empty"):
        viz.draw([])


# --- the text


PROGRAM = """
import viz
from tests.test_viz import unrolled
print(viz.draw(list(unrolled(layers=("fwd", "rev")))).source)
"""


def test_two_processes_write_the_same_bytes():
    def run(seed):
        return subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout

    first = run("1")
    assert first == run("2")
    assert b"net.L1.rev.T2.h" in first
    loss, _ = unrolled()
    assert viz.draw(loss).source == viz.draw(loss).source


def test_importing_the_framework_imports_no_drawing():
    code = "import sys, tinygrad_rnn; assert not {'graphviz', 'viz'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_become_ids_without_syntax_each_once():
    names = [*NASTY, "x", "x", "x_2", "a b", "a_b"]
    source = viz.draw([Tensor(1.0, name=n) for n in names]).source
    found = nodes(source)
    assert len(found) == len(names)
    assert all(re.fullmatch(r"[\w.#]+", i) for i in found)
    assert re.search(r'label="say \\"h\\"\\n1"', source)
    assert '"back\\\\slash\\n1"' in source
    assert "<b>" in source
    assert 'label="<lambda>' in source
    assert "\0" not in source


def test_html_alone_is_text():
    assert (
        '"<lambda>"' in graphviz.Digraph(body=[f'\tx [label="{labels.text("<lambda>")}"]']).source
    )
    dot = graphviz.Digraph()
    dot.node("x", labels.text("<i>"))
    assert 'label="<i>"' in dot.source


@needs_dot
def test_dot_shows_names_as_they_are(tmp_path):
    made = [Tensor(1.0, requires_grad=True, name=n) for n in NASTY]
    path = viz.draw([t * 1 for t in made]).save(tmp_path / "names.svg")
    shown = {t.replace("\xa0", " ").removesuffix("\n1") for t in texts(path.read_bytes())}
    expected = [re.sub("[\0\x1b\ud800]", "\ufffd", n) for n in NASTY]
    assert [n for n in expected if n not in shown] == []
    title = Call('<a> "b"\\', 1)
    with at(Place(title, 0, "fwd", 0)):
        y = made[0] * 1
    with at(Place(Call("z", 1), 0, "fwd", 0)):
        y = y * 2
    svg = viz.draw(y).save(tmp_path / "frame.svg").read_text()
    assert '&lt;a&gt; "b"\\.L0.fwd, t = 1' in svg.replace("&#45;", "-").replace("&quot;", '"')


def test_ten_thousand_nodes():
    x = Parameter([1.0], name="x")
    y = x
    for _ in range(10_000):
        y = -y
    drawn = viz.draw(y)
    assert drawn.source.count(" -> ") == 10_000
    assert repr(drawn) == "<Drawing nodes=10001, edges=10000>"


# --- files


@pytest.mark.parametrize("name", ["a.dot", "a.gv", "a.DOT"])
def test_text_needs_no_program(name, tmp_path, without_dot):
    drawn = viz.draw(unrolled()[0])
    (tmp_path / name).write_text("old")
    assert drawn.save(str(tmp_path / name)) == tmp_path / name
    assert (tmp_path / name).read_bytes() == drawn.source.encode()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "empty"])


@needs_dot
@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<?xml"), ("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF")]
)
def test_dot_makes_pictures(name, start, tmp_path):
    path = viz.draw(unrolled()[0]).save(tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.jpg", "a", ".svg"])
def test_other_endings_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"one of \.dot, \.gv, \.svg, \.png, \.pdf"):
        viz.draw(Tensor(1.0)).save(tmp_path / name)


def test_without_dot_a_picture_is_an_error_that_helps(tmp_path, without_dot):
    (tmp_path / "a.svg").write_text("old")
    with pytest.raises(RuntimeError, match=r"dot is not installed.*graphviz.*\.dot file"):
        viz.draw(Tensor(1.0)).save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == "old"


@posix
def test_a_slow_dot_is_killed_and_the_text_kept(tmp_path, stub_dot, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    stub_dot(f"exec 3>{tmp_path}/pipe; (sleep 60; echo survived >&3) & wait")
    assert program.TIMEOUT == 10
    monkeypatch.setattr(program, "TIMEOUT", 0.3)
    (tmp_path / "a.svg").write_text("old")
    drawn = viz.draw(Tensor(1.0))
    with pytest.warns(UserWarning, match=r"a\.svg was not written.*longer than 0\.3 s.*a\.dot"):
        path = drawn.save(tmp_path / "a.svg")
    assert path == tmp_path / "a.dot"
    assert path.read_text() == drawn.source
    assert (tmp_path / "a.svg").read_text() == "old"
    os.set_blocking(pipe, True)
    assert os.read(pipe, 9) == b""  # ends when nobody holds it: what dot started is killed too
    os.close(pipe)


@posix
def test_a_failing_dot_leaves_the_old_file_whole(tmp_path, stub_dot):
    stub_dot("echo half; echo 'no such font' >&2; exit 3")
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(RuntimeError, match="status 3: no such font"):
        viz.draw(Tensor(1.0)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"


@posix
def test_a_dot_that_draws_nothing_leaves_the_old_file_whole(tmp_path, stub_dot):
    stub_dot("exit 0")
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(RuntimeError, match="status 0: no picture"):
        viz.draw(Tensor(1.0)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"


@posix
def test_a_dot_that_cannot_be_executed_is_said(tmp_path, stub_dot):
    stub_dot("")
    (tmp_path / "bin" / "dot").write_bytes(b"\x7fELF no program")
    drawn = viz.draw(Tensor(1.0))
    with pytest.raises(RuntimeError, match=r"dot cannot be run: .*dot"):
        drawn.save(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert drawn._repr_mimebundle_()["text/plain"].endswith(drawn.source)


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    def fill(number):
        raise OSError(errno.ENOSPC, "disk full")

    (tmp_path / "a.dot").write_text("old")
    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match=r"disk full\); the old file is unchanged: '.*a\.dot'"):
        viz.draw(Tensor(1.0)).save(tmp_path / "a.dot")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.dot", "old")]


@pytest.mark.parametrize("ending", ["dot", pytest.param("svg", marks=needs_dot)])
def test_a_path_that_cannot_be_written_is_named(ending, tmp_path):
    path = tmp_path / "none" / f"a.{ending}"
    with pytest.raises(FileNotFoundError) as caught:
        viz.draw(Tensor(1.0)).save(path)
    assert caught.value.filename == str(path)
    path = tmp_path / f"folder.{ending}"
    path.mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        viz.draw(Tensor(1.0)).save(path)
    assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no draft is left


# --- notebooks


@needs_dot
def test_a_notebook_shows_svg():
    bundle = viz.draw(Tensor(1.0))._repr_mimebundle_(include=None, exclude=None)
    assert list(bundle) == ["image/svg+xml"]
    assert "<svg" in bundle["image/svg+xml"]


def test_a_notebook_without_dot_shows_the_text(without_dot):
    drawn = viz.draw(Tensor(1.0))
    text = drawn._repr_mimebundle_()["text/plain"]
    assert text.startswith("// Graphviz's program dot is not installed")
    assert text.endswith(drawn.source)


@posix
@pytest.mark.parametrize("script", ["sleep 60", "exit 1", "printf '\\377'"])
def test_a_notebook_never_sees_an_error(script, stub_dot, monkeypatch):
    stub_dot(script)
    monkeypatch.setattr(program, "TIMEOUT", 0.3)
    drawn = viz.draw(Tensor(1.0))
    assert drawn._repr_mimebundle_()["text/plain"].endswith(drawn.source)


# --- layers


@needs_dot
def test_four_steps_of_an_lstm_run_from_left_to_right(tmp_path):
    out, _ = nn.LSTM(2, 3, rng=0)(np.ones((4, 1, 2)))
    drawn = viz.draw((out * out).sum())
    titles = re.findall(r't = \d"', drawn.source)
    assert titles == [f't = {t}"' for t in (1, 2, 3, 4)]
    for name in "ifgoch":
        assert len(re.findall(rf'label="{name}: ', drawn.source)) == 4
    svg = drawn.save(tmp_path / "lstm.svg").read_text().replace("&#45;", "-")
    boxes = re.findall(r'class="cluster">\s*<title>.*?</title>\s*<path .*? d="(.*?)"', svg)
    spans = [[float(x) for x in re.findall(r"(-?[\d.]+),", box)] for box in boxes]
    assert len(spans) == 4
    assert all(max(a) < min(b) for a, b in pairwise(spans))  # side by side, none overlaps
