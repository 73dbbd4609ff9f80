"""One test or more for every claim of the lecture, C1 to C7; its name carries the row's name."""
# ruff: noqa: N802 - the rows are called C1, C2, ...

import csv
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn import Parameter, Tensor, bptt, grad, graph
from tinygrad_rnn.functional import stack
from tinygrad_rnn.nn import LSTMCell, Recurrent, RNNCell

from .test_cells import randomise, weighted
from .test_examples import EXAMPLES, load, result
from .test_lecture import forced, leaf

ROOT = Path(__file__).resolve().parent.parent
D, H = 3, 4


def prose(text):
    """Return a text as one line, without its emphasis."""
    return " ".join(text.replace("*", "").split())


# --- C5 to C7: gates, consumers, architectures ---------------------------------------------------


@pytest.mark.parametrize(("bias", "kept"), [(800, 1.0), (-800, 0.0)])
def test_C5_a_forget_gate_of_1_keeps_and_one_of_0_drops(bias, kept):
    c0 = np.array([[[5.0, -1e-9]]])
    layer = forced(f=bias, i=-800)
    _, (_, c), trace = layer(None, (np.zeros((1, 1, 2)), c0), steps=3, trace=True)
    assert (trace["L0.fwd.f"].data == kept).all()
    np.testing.assert_array_equal(c.data, kept * c0)


@pytest.mark.parametrize("text", [LSTMCell.__doc__, (ROOT / "README.md").read_text()])
def test_C5_the_documents_say_that_the_forget_gate_keeps(text):
    assert "forget gate keeps: f = 1 keeps the cell state, f = 0 drops it" in prose(text)


@pytest.mark.parametrize("kind", [RNNCell, LSTMCell])
def test_C6_the_output_goes_up_and_on_at_once_and_the_gradients_add(kind):
    lower, upper = [randomise(kind(k, H, dtype="f8", rng=0), seed=k) for k in (D, H)]
    T, t, x = 5, 2, leaf(5, 1, D)
    out, _ = Recurrent([lower, upper])(x)
    nodes = graph.nodes([out])
    [h] = [n for n in nodes if n.name == "h" and (n.place.layer, n.place.step) == (0, t)]
    readers = [(n.place.layer, n.place.step) for n in nodes if any(i is h for i in n.inputs)]
    assert sorted(readers) == [(0, t + 1), (1, t)]  # on to the next step, and up, once each

    def run(cell, x, state=None):
        return Recurrent(cell)(x, state)

    below, state = run(lower, x[: t + 1])  # again, with a copy of h(t) for each of the two
    up, on = [Tensor(h.data, requires_grad=True) for _ in range(2)]
    after, _ = run(lower, x[t + 1 :], on if kind is RNNCell else (on, state[1].data))
    copies = [*below.data[:t], up, *[after[k] for k in range(T - t - 1)]]
    again, _ = run(upper, stack(copies))
    np.testing.assert_allclose(again.data, out.data, rtol=1e-13)
    parts = grad(weighted(again), [up, on])
    assert all(np.abs(g).min() > 1e-6 for g in parts)
    np.testing.assert_allclose(grad(weighted(out), h), sum(parts), rtol=1e-11)


USES = {  # the lecture's five, by what it says they are for: the example that trains it
    "one to one": ("image classification", "digits_mlp"),
    "one to many": ("image captioning", "caption_digits"),
    "many to one": ("sentiment analysis", "sentiment"),
    "many to many delayed": ("machine translation", "toy_translation"),
    "many to many synced": ("video classification on frame level", "frames"),
}


def gallery():
    """Return the rows of the gallery, by the example that they name."""
    lines = (ROOT / "examples" / "README.md").read_text().splitlines()
    found = [(re.search(r"examples/(\w+)\.py", line), line) for line in lines]
    return {match[1]: line for match, line in found if match}


@pytest.mark.parametrize("name", USES)
def test_C7_each_of_the_five_architectures_has_an_example_of_its_use(name):
    use, example = USES[name]
    assert example in EXAMPLES  # which test_examples.py runs, every one, with small settings
    row = gallery()[example]
    assert name in row
    assert use in row
    picture = load("architectures").__dict__[name.replace(" ", "_")]
    assert use in picture.__doc__.lower()


def test_C7_the_five_pictures_have_their_arrows():
    example, T_in, T_out = load("architectures"), 5, 4
    want = {
        "one_to_one": np.ones((1, 1)),
        "one_to_many": np.ones((T_out, 1)),
        "many_to_one": np.ones((1, T_in)),
        "many_to_many_delayed": np.ones((T_out, T_in)),
        "many_to_many_synced": np.tri(T_in),  # its past and itself, no future
    }
    assert [build.__name__ for build in example.FIVE] == list(want)
    sizes = example.Sizes(3, 4, 2, T_out, np.random.default_rng(0))
    for build in example.FIVE:
        y, x = example.run_one(build, T_in, sizes)
        np.testing.assert_array_equal(bptt.reads(y, x), want[build.__name__])
        learned = [p for p in graph.nodes([y]) if isinstance(p, Parameter)]
        assert all(g.any() for g in grad((y * y).sum(), learned))


def test_the_gallery_has_a_row_for_every_example_and_its_result():
    rows = gallery()
    assert sorted(rows) == sorted(EXAMPLES)
    assert not [name for name, row in rows.items() if "TODO" in row]


# --- C1 to C4: long-term dependencies, on the lecture's passage ----------------------------------


@pytest.fixture(scope="module")
def passage():
    """Return the example on long-term dependencies, and the words' vectors (T, N=1, D)."""
    example = load("long_term")
    tokens, _ = example.words()
    numbers = [sorted(set(tokens)).index(token) for token in tokens]
    vectors = np.random.default_rng(1).standard_normal((len(set(tokens)), D))
    return example, vectors[numbers][:, None]


def test_C1_paris_is_116_steps_from_the_question_word(passage):
    example, x = passage
    tokens = re.findall(r"\w+|[^\w\s]", example.TEXT)
    assert tokens.index("where") - tokens.index("Paris") == 116
    apart = example.TEXT.split()
    assert apart.index("where?") - apart.index("Paris.") == 106  # punctuation counts as a step
    assert example.words() == (tokens[tokens.index("Paris") : tokens.index("where") + 1], 116)
    assert len(x) == 117


def spectral(layer, radius):
    """Scale W to a spectral radius; its norm is larger, as it is not normal."""
    W = layer.L0["fwd"].W_h
    W.data = np.random.default_rng(2).standard_normal(W.shape)
    W.data *= radius / np.abs(np.linalg.eigvals(W.data)).max()
    return W.data


@pytest.mark.parametrize("radius", [0.5, 0.9, 1.1])
def test_C2_the_gradient_of_a_linear_network_is_a_power_of_W(passage, radius):
    example, x = passage
    layer = example.plain(D, H, 1, "identity", 0)
    W = spectral(layer, radius)
    found = bptt.report((layer(x)[0][-1] * np.arange(1.0, H + 1)).sum(), layer)
    powers = [np.linalg.matrix_power(W, k) for k in reversed(range(117))]
    want = [np.linalg.norm(P @ np.arange(1.0, H + 1)) for P in powers]
    np.testing.assert_allclose(found.h_norm[0], want, rtol=1e-9)
    np.testing.assert_allclose(found.transfer, [np.linalg.norm(P, 2) for P in powers], rtol=1e-9)
    slope = example.slope(found.h_norm[0])
    assert slope == pytest.approx(np.log10(radius), abs=0.01)
    assert (found.h_norm[0, 0] > found.h_norm[0, -1]) == (radius > 1)


@pytest.mark.parametrize("radius", [0.5, 0.9, 1.1])
def test_C2_the_gradient_of_a_tanh_network_lies_below_the_product_bound(passage, radius):
    example, x = passage
    layer = example.plain(D, H, radius, "tanh", 0)
    found, _ = example.measure(layer, x, 5, 0, transfer=True)
    norm = np.linalg.norm(layer.L0["fwd"].W_h.data, 2)
    h = layer(x)[0].data[:, 0]
    below = [np.prod(norm * (1 - h[t + 1 :] ** 2).max(1)) for t in range(117)]
    assert (found.transfer <= np.array(below) * (1 + 1e-9)).all()
    np.testing.assert_allclose(example.bound(layer, x), below, rtol=1e-9)
    assert example.slope(found.h_norm[0]) < np.log10(radius)  # faster than the linear one
    assert found.h_norm[0, 0] < found.h_norm[0, -1] * radius**116


def test_C2_a_weight_to_the_power_of_100():
    example = load("long_term")
    assert example.power(0.9, 100) == pytest.approx(2.656e-5, rel=1e-3)  # the lecture's figures
    assert example.power(1.1, 100) == pytest.approx(13780.6, rel=1e-5)


def test_C2_the_example_writes_the_curves_as_numbers(tmp_path, capsys):
    example = load("long_term")
    assert example.main([*example.SMALL, "--out", str(tmp_path)]) == 0
    shown = result(capsys.readouterr().out)
    with (tmp_path / "long_term.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["word"] for row in (rows[0], rows[-1])] == ["Paris", "where"]
    assert [int(row["steps back"]) for row in rows] == list(range(116, -1, -1))
    for name, key in [("dh linear 0.9", "linear_09"), ("dc lstm 3", "lstm_3")]:
        curve = np.array([float(row[name]) for row in rows])
        assert shown[key] == pytest.approx(example.slope(curve), abs=1e-4)
    assert shown["linear_09"] == pytest.approx(np.log10(0.9), abs=1e-4)


def test_C3_the_further_back_a_word_is_the_smaller_its_influence(passage):
    example, x = passage
    layer = example.plain(D, H, 0.9, "tanh", 0)
    _, influence = example.measure(layer, x, 5, 0)
    far = [influence[-1 - k] for k in (0, 10, 30, 60, 116)]
    assert all(a > 3 * b for a, b in pairwise(far))
    first = [example.measure(layer, x[:T], 5, 0)[1][0] for T in (1, 10, 30, 60, 117)]
    assert all(a > 3 * b for a, b in pairwise(first))  # of one word, in longer sequences


def test_C4_the_conveyor_carries_what_the_forget_gates_keep(passage):
    example, x = passage
    kept = []
    for bias in (1, 2, 3, 4, 5):
        layer = example.lstm(D, H, bias, True, 0)
        _, (_, c), trace = layer(x, trace=True)
        found = bptt.report(c.sum(), layer, terms=False)  # nothing but the conveyor leads there
        f = trace["L0.fwd.f"].data[:, 0]
        products = np.array([f[t + 1 :].prod(0) for t in range(117)])
        np.testing.assert_allclose(found.c_norm[0], np.linalg.norm(products, axis=1), rtol=1e-10)
        np.testing.assert_allclose(found.c_from_c, found.c_norm, rtol=1e-12)
        assert (found.c_from_h == 0).all()
        kept.append(found.c_norm[0, 0] / found.c_norm[0, -1])
    assert kept == sorted(kept)
    assert kept[-1] > 0.2
    plain, _ = example.measure(example.plain(D, H, 0.9, "tanh", 0), x, 5, 0)
    assert plain.h_norm[0, 0] / plain.h_norm[0, -1] < 1e-6 * kept[-1]


@pytest.mark.parametrize("bias", [1, 2, 3, 4, 5])
def test_C4_the_gradient_of_an_lstm_does_not_vanish_over_116_steps(passage, bias):
    example, x = passage
    whole, _ = example.measure(example.lstm(D, H, bias, False, 0), x, 5, 0)
    plain, _ = example.measure(example.plain(D, H, 0.9, "tanh", 0), x, 5, 0)
    assert example.slope(whole.c_norm[0]) > example.slope(plain.h_norm[0]) / 2
    assert (whole.c_norm[0] > whole.c_from_h[0]).any()
