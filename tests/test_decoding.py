"""Greedy search, sampling and beam search against brute force over all sequences."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Tensor
from tinygrad_rnn.errors import DtypeError, NonFiniteError, ShapeError
from tinygrad_rnn.functional import log_softmax
from tinygrad_rnn.nn import GRU, Embedding, Linear, decoding
from tinygrad_rnn.nn.decoding import beam, greedy, sample

from .test_errors_nn import says


class Tree:
    """A random model of all sequences: every beginning has logits of its own.

    The state is (which tree, which beginning), each (1, B), the beginnings numbered as a heap.
    """

    def __init__(self, V, L, N, seed, ties=False):
        rng = np.random.default_rng(seed)
        size = N, sum(V**k for k in range(L + 1)), V
        self.V, self.L, self.N = V, L, N
        self.logits = rng.integers(0, 2, size) * 1.0 if ties else 2 * rng.standard_normal(size)
        self.calls = 0

    start = property(lambda self: np.zeros(self.N, int))
    state = property(lambda self: (np.arange(self.N)[None], np.full((1, self.N), -1)))

    def step(self, ids, state):
        """Return the logits of what follows; the first ids are the start, not a beginning."""
        self.calls += 1
        tree, at = state
        at = np.where(at < 0, 0, at * self.V + ids + 1)
        return self.logits[tree[0], at[0]], (tree, at)

    def log_prob(self, n, symbols):
        """Return the log-probability of a sequence, its end symbol included."""
        at, total = 0, 0.0
        for k in symbols:
            a = self.logits[n, at]
            total += a[k] - np.log(np.exp(a).sum())
            at = at * self.V + k + 1
        return total

    def every(self, eos):
        """Yield every sequence: it ends with eos, or is L long."""
        for length in range(1, self.L + 1):
            for s in itertools.product(range(self.V), repeat=length):
                if eos not in s[:-1] and (s[-1] == eos or length == self.L):
                    yield s


def score(log_prob, length, alpha):
    return log_prob / ((5 + length) / 6) ** alpha


def without(symbols, eos):
    return list(symbols[:-1] if symbols[-1] == eos else symbols)


def plain_beam(tree, n, eos, width, alpha):
    """Return the best sequence of one beam: lists, no arrays, no early stop."""
    kept = [()]
    for _ in range(tree.L):
        wider = []
        for s in kept:
            ended = s and s[-1] == eos
            wider += [s] if ended else [(*s, k) for k in range(tree.V)]
        wider.sort(key=lambda s: -score(tree.log_prob(n, s), len(s), alpha))
        kept = wider[:width]
    return kept[0]


@st.composite
def trees(draw, ties=False):
    V, L = draw(st.sampled_from([(2, 4), (3, 3), (4, 2), (3, 1), (4, 3)]))
    tree = Tree(V, L, draw(st.integers(1, 3)), draw(st.integers(0, 2**32 - 1)), ties)
    return tree, draw(st.sampled_from([None, 0, V - 1]))


alphas = st.sampled_from([0.0, 0.6, 1.0, 3.0])


@given(given=trees(), alpha=alphas)
def test_a_beam_that_cuts_nothing_finds_the_best_of_all_sequences(given, alpha):
    tree, eos = given
    found = beam(
        tree.step, tree.start, tree.state, eos=eos, max_length=tree.L, width=tree.V**tree.L,
        length_penalty=alpha, exhaustive=True,
    )  # fmt: skip
    for n, best in enumerate(found):
        every = list(tree.every(eos))
        scores = [score(tree.log_prob(n, s), len(s), alpha) for s in every]
        want = every[int(np.argmax(scores))]
        assert best.ids.tolist() == without(want, eos)
        np.testing.assert_allclose(best.score, max(scores), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(best.log_prob, tree.log_prob(n, want), rtol=1e-12, atol=1e-13)


@given(given=trees(), alpha=alphas, width=st.integers(1, 4))
def test_a_batch_of_beams_is_each_beam_written_out(given, alpha, width):
    tree, eos = given
    width = min(width, tree.V)
    found = beam(
        tree.step, tree.start, tree.state, eos=eos, max_length=tree.L, width=width,
        length_penalty=alpha,
    )  # fmt: skip
    for n, best in enumerate(found):
        want = plain_beam(tree, n, eos, width, alpha)
        assert best.ids.tolist() == without(want, eos)
        np.testing.assert_allclose(
            best.score, score(tree.log_prob(n, want), len(want), alpha), atol=1e-13
        )


@given(given=trees(ties=True), alpha=alphas)
def test_a_beam_of_width_1_is_greedy_search_and_of_equal_symbols_the_first_wins(given, alpha):
    tree, eos = given
    given = tree.step, tree.start, tree.state
    found = greedy(*given, eos=eos, max_length=tree.L)
    narrow = beam(*given, eos=eos, max_length=tree.L, width=1, length_penalty=alpha)
    for n, (a, b) in enumerate(zip(found, narrow, strict=True)):
        want, at = [], 0
        while len(want) < tree.L and (not want or want[-1] != eos):
            want.append(int(np.argmax(tree.logits[n, at])))
            at = at * tree.V + want[-1] + 1
        assert a.ids.tolist() == b.ids.tolist() == without(want, eos)
        np.testing.assert_allclose([a.log_prob, b.log_prob], tree.log_prob(n, want), atol=1e-13)


def test_decoding_stops_when_all_have_ended_and_a_beam_when_nothing_can_overtake():
    tree = Tree(3, 6, 2, seed=0)
    tree.logits[:, :, 2] = -9.0
    tree.logits[0, 0, 2] = tree.logits[1, 1:4, 2] = 9.0  # ends after one step, and after two
    given = tree.step, tree.start, tree.state
    for decode in (greedy, sample, lambda *a, **k: beam(*a, width=2, **k)):
        tree.calls = 0
        more = {"rng": 0} if decode is sample else {}
        found = decode(*given, eos=2, max_length=6, **more)
        assert [len(h.ids) for h in found] == [0, 1]
        assert tree.calls == 2
    short = greedy(*given, max_length=3)
    assert [len(h.ids) for h in short] == [3, 3]


@pytest.mark.parametrize(("alpha", "want"), [(0.0, []), (3.0, [0, 0, 0, 0])])
def test_a_length_penalty_lets_a_long_sequence_overtake_one_that_has_ended(alpha, want):
    tree = Tree(3, 4, 1, seed=0)
    tree.logits[:] = np.log([0.99, 0.005, 0.005])
    tree.logits[:, 0] = np.log([0.33, 0.3, 0.37])
    given = {"eos": 2, "max_length": 4, "width": 2, "length_penalty": alpha}
    [best] = beam(tree.step, tree.start, tree.state, **given)
    assert best.ids.tolist() == want
    assert tree.calls == (4 if want else 1)


def test_a_state_whose_first_axis_counts_the_rows():
    tree = Tree(3, 3, 2, seed=1)

    def step(ids, state):
        logits, state = tree.step(ids, tuple(s.T for s in state))
        return logits, tuple(s.T for s in state)

    given = {"max_length": 3, "width": 3}
    want = beam(tree.step, tree.start, tree.state, **given)
    found = beam(step, tree.start, tuple(s.T for s in tree.state), state_axis=0, **given)
    assert [h.ids.tolist() for h in found] == [h.ids.tolist() for h in want]


def test_many_candidates_are_ranked_as_few_are():
    tree = Tree(1500, 1, 1, seed=2)
    given = {"max_length": 1, "width": 3}  # 3 * 1500 > 4096
    [best] = beam(tree.step, tree.start, tree.state, **given)
    assert best.ids.tolist() == [int(tree.logits[0, 0].argmax())]


@pytest.mark.parametrize("V", [300, 3000])  # few candidates, and more than 4096
def test_of_equal_candidates_the_first_win_however_many_there_are(V):
    def step(ids, state):
        logits = np.zeros((len(ids), V))
        logits[ids > 5] = 50.0, *[-50.0] * (V - 1)  # a sure step, but not from the first symbols
        return logits, state

    for width in (1, 2, 5):
        [best] = beam(step, [0], max_length=2, width=width)
        assert best.ids.tolist() == [0, 0]
    scores = np.random.default_rng(0).integers(0, 3, (4, 5000)) * 1.0
    scores[3] = -np.inf
    want = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(decoding._largest(scores, 7), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_follows_an_end_or_cannot_be_does_not_matter(value):
    """Row 0 ends at once and its logits break; a beam also drops what has no probability."""

    def step(ids, state):
        [at] = state
        logits = np.log([[0.2, 0.7, 0.1]] * len(ids))
        logits[at == 0] = 0.0, -9.0, 9.0
        logits[(at == 0) & (ids == 2)] = value
        return logits, state

    given = {"eos": 2, "max_length": 4}
    state = (np.arange(2),)
    for found in (
        greedy(step, [0, 0], state, **given),
        sample(step, [0, 0], state, rng=0, temperature=0.01, **given),
        beam(step, [0, 0], state, width=2, state_axis=0, **given),
    ):
        assert [h.ids.tolist() for h in found] == [[], [1, 1, 1, 1]]
        assert np.isfinite([h.log_prob for h in found]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_of_a_beam_without_probability_may_hold_anything(value):
    def step(ids, state):
        logits = np.full((len(ids), 3), -np.inf)
        logits[ids == 0, 1] = logits[ids == 1, 0] = 0.0  # one way alone
        logits[ids == 2] = value  # where it never leads
        return logits, state

    [best] = beam(step, [0], max_length=3, width=3)
    assert (best.ids.tolist(), best.log_prob) == ([1, 0, 1], 0.0)


def test_a_language_model_is_decoded_as_it_is():
    V, embed = 5, Embedding(5, 4, rng=0)
    layer, read = GRU(4, 6, 2, rng=1), Linear(6, 5, rng=2)

    def step(ids, state):
        out, state = layer(embed(ids[None]), state)
        return read(out[0]), state

    [written] = greedy(step, [3], max_length=6)
    logits = read(layer(embed(np.array([3, *written.ids])[:, None]))[0])
    np.testing.assert_array_equal(logits.data[:-1, 0].argmax(1), written.ids)

    def total(s):
        out, _ = layer(embed(np.array([3, *s[:-1]])[:, None]))
        log_p = log_softmax(read(out).data[:, 0].astype(np.float64))
        return log_p[np.arange(len(s)), list(s)].sum()

    [best] = beam(step, [3], max_length=3, width=V**2, exhaustive=True)
    want = max(itertools.product(range(V), repeat=3), key=total)
    assert tuple(best.ids) == want
    np.testing.assert_allclose(best.log_prob, total(want), rtol=1e-5)


# --- sampling --------------------------------------------------------------------------------


class Grid(np.random.Generator):
    """A generator whose N numbers lie evenly in [0, 1): shares are exact to 1 / N."""

    def __init__(self):
        super().__init__(np.random.PCG64())

    def random(self, size):
        return (np.arange(size[0]).reshape(size) + 0.5) / size[0]


N = 4000


def shares(p, **settings):
    """Return how often each symbol is drawn from p."""

    def step(ids, state):
        with np.errstate(divide="ignore"):
            return np.log(np.tile(p, (len(ids), 1))), state

    drawn = sample(step, np.zeros(N, int), max_length=1, rng=Grid(), **settings)
    return np.bincount([int(h.ids[0]) for h in drawn], minlength=len(p)) / N


probabilities = st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any).map(np.array)


@given(counts=probabilities, temperature=st.sampled_from([0.3, 1.0, 2.5]))
def test_symbols_are_drawn_with_the_probabilities_of_the_tempered_softmax(counts, temperature):
    p = counts / counts.sum()
    want = np.where(p > 0, p ** (1 / temperature), 0)
    found = shares(p, temperature=temperature)
    np.testing.assert_allclose(found, want / want.sum(), atol=1.01 / N)
    assert not found[p == 0].any()


@given(counts=probabilities, data=st.data())
def test_top_k_keeps_the_k_most_probable_and_nucleus_the_fewest_that_weigh_enough(counts, data):
    p = (counts + np.linspace(0.1, 0.2, len(counts))) / 10  # no two are equal
    p /= p.sum()
    k, mass = data.draw(st.integers(1, len(p))), data.draw(st.floats(0.05, 0.95))
    order = np.argsort(-p)
    want = np.zeros_like(p)
    want[order[:k]] = p[order[:k]]
    np.testing.assert_allclose(shares(p, top_k=k), want / want.sum(), atol=1.01 / N)
    want = np.zeros_like(p)
    for i in order:
        want[i] = p[i]
        if want.sum() >= mass:
            break
    np.testing.assert_allclose(shares(p, nucleus=mass), want / want.sum(), atol=1.01 / N)


@given(given=trees(), seed=st.integers(0, 99))
def test_what_cuts_nothing_changes_nothing_and_what_leaves_one_is_greedy(given, seed):
    tree, eos = given
    given = tree.step, tree.start, tree.state
    settings = {"eos": eos, "max_length": tree.L}

    def ids(decode, **more):
        return [h.ids.tolist() for h in decode(*given, **settings, **more)]

    plain = ids(sample, rng=seed)
    assert plain == ids(sample, rng=seed, nucleus=1.0, top_k=tree.V)
    assert plain == ids(sample, rng=np.random.default_rng(seed))
    best = ids(greedy)
    assert best == ids(sample, rng=seed, top_k=1)
    assert best == ids(sample, rng=seed, nucleus=1e-9)
    assert best == ids(sample, rng=seed, temperature=1e-9)
    assert best == ids(sample, rng=seed, temperature=1e-310)


def test_samples_differ_by_seed_and_carry_the_log_probability_of_the_model():
    tree = Tree(3, 4, 3, seed=0)
    given = tree.step, tree.start, tree.state
    runs = [sample(*given, eos=1, max_length=4, rng=seed, temperature=3.0) for seed in range(5)]
    assert len({str([h.ids.tolist() for h in run]) for run in runs}) > 1
    for n, h in enumerate(runs[0]):
        whole = [*h.ids.tolist(), 1][:4] if len(h.ids) < 4 else h.ids.tolist()
        np.testing.assert_allclose(h.log_prob, tree.log_prob(n, whole), atol=1e-13)


# --- misuse ----------------------------------------------------------------------------------


def uniform(ids, state):
    return np.zeros((len(ids), 3)), state


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), "a"])
def test_a_temperature_that_is_not_above_0(temperature):
    with says(ValueError, f"sample: temperature={temperature!r} must be above 0"):
        sample(uniform, [0], max_length=2, temperature=temperature)


def test_parts_that_are_no_parts():
    with says(ValueError, "sample: nucleus=0 is not in (0, 1]"):
        sample(uniform, [0], max_length=2, nucleus=0)
    with says(ValueError, "sample: nucleus=1.5 is not in (0, 1]"):
        sample(uniform, [0], max_length=2, nucleus=1.5)
    with says(ValueError, "sample: nucleus='a' is not in (0, 1]"):
        sample(uniform, [0], max_length=2, nucleus="a")
    with says(ValueError, "sample: top_k=0 must be a whole number, 1 or more"):
        sample(uniform, [0], max_length=2, top_k=0)
    with says(ValueError, "sample: top_k=4 is more than the 3 symbols"):
        sample(uniform, [0], max_length=2, top_k=4)


def test_a_beam_wider_than_the_vocabulary():
    with says(ValueError, "beam: width=4 is wider than the vocabulary of 3 symbols"):
        beam(uniform, [0], max_length=2, width=4)
    assert len(beam(uniform, [0], max_length=2, width=4, exhaustive=True)) == 1


@pytest.mark.parametrize("width", [0, -1, 2.0, None, "3", True])
def test_a_beam_without_width(width):
    with says(ValueError, f"beam: width={width!r} must be a whole number, 1 or more"):
        beam(uniform, [0], max_length=2, width=width)


@pytest.mark.parametrize("alpha", [-0.5, float("inf"), float("nan"), "a"])
def test_a_length_penalty_out_of_range(alpha):
    with says(ValueError, f"beam: length_penalty={alpha!r} must be 0 or more"):
        beam(uniform, [0], max_length=2, width=2, length_penalty=alpha)


DECODERS = [greedy, sample, lambda *a, **k: beam(*a, width=2, **k)]


@pytest.mark.parametrize("decode", DECODERS)
def test_starts_ends_and_limits_that_do_not_fit(decode):
    with says(ValueError, "max_length=0 must be a whole number, 1 or more"):
        decode(uniform, [0], max_length=0)
    with says(ValueError, "eos=3 is not in 0..2"):
        decode(uniform, [0], max_length=2, eos=3)
    for eos in ("x", 1.5):
        with says(ValueError, f"eos={eos!r} is not in 0..2"):
            decode(uniform, [0], max_length=2, eos=eos)
    with says(ValueError, "max_length=2.5 must be a whole number, 1 or more"):
        decode(uniform, [0], max_length=2.5)
    with says(ShapeError, "start has shape (), expected (N,)"):
        decode(uniform, 0, max_length=2)
    with says(ShapeError, "start has shape (0,), expected (N,)"):
        decode(uniform, [], max_length=2)
    with says(DtypeError, "start is float64, expected integers"):
        decode(uniform, [0.5], max_length=2)


@pytest.mark.parametrize("decode", DECODERS)
def test_steps_that_return_no_logits(decode):
    with says(ShapeError, "step returned logits (3,) for", "expected ("):
        decode(lambda ids, state: (np.zeros(3), state), [0], max_length=2)
    with says(TypeError, "step returned ndarray, expected a pair (logits, state)"):
        decode(lambda ids, state: np.zeros((len(ids), 3)), [0, 1], max_length=2)
    for row in ([0.0, np.nan, 0.0], [0.0, np.inf, 0.0], [-np.inf] * 3):
        with says(NonFiniteError, f"largest logit of row 0, step t=1, is {np.max(row)}"):
            decode(lambda ids, state, a=row: (np.array([a] * len(ids)), state), [0], max_length=2)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ([np.zeros((1, 2))], "list"),
        ({"h": np.zeros((1, 2))}, "dict"),
        ((np.zeros((1, 2)), None), "NoneType"),
        (np.zeros((1, 3)), (1, 3)),
        ((np.zeros((1, 2)), Tensor(np.zeros((2, 1)))), (2, 1)),
        (Tensor(np.zeros(2)), (2,)),
    ],
)
def test_states_that_a_beam_cannot_follow(state, found):
    text = f"the state has {found}, expected arrays or Tensors, in tuples, with 2 rows on their"
    with says(ShapeError, text, "state_axis=1"):
        beam(uniform, [0, 0], state, max_length=2, width=2)
    with says(ShapeError, "the state has ", "state_axis=-3"):
        beam(uniform, [0, 0], state, max_length=2, width=2, state_axis=-3)
    with says(ShapeError, "the state has ", "with 4 rows on their axis state_axis=1"):
        beam(lambda ids, _: (np.zeros((len(ids), 3)), state), [0, 0], max_length=2, width=2)
