"""Batches hold what they promise, in an order that can be stopped and continued anywhere."""

import doctest
import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tinygrad_rnn import data
from tinygrad_rnn.data import Vocabulary, batches, bptt_batches, pad, windows
from tinygrad_rnn.errors import DtypeError, ShapeError, StateError

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32)


def equal(a, b):
    """Compare batches: arrays with their dtypes, lists and tuples of them, other values."""
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b)


def test_docstrings():
    assert doctest.testmod(data).failed == 0


# Vocabulary


@given(st.text(min_size=1))
def test_characters_round_trip(text):
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == text
    assert vocabulary.tokens == tuple(sorted(set(text)))
    assert len(vocabulary) == len(set(text))
    assert all(character in vocabulary for character in text)


@given(st.lists(st.text(), min_size=1))
def test_tokens_round_trip(tokens):
    vocabulary = Vocabulary(iter(tokens))
    ids = vocabulary.encode(tokens)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == tokens
    assert vocabulary.tokens == tuple(sorted(set(tokens)))
    assert Vocabulary(vocabulary.tokens).tokens == vocabulary.tokens


@given(st.text(), st.text(), st.sampled_from(["<unk>", "a", "?"]), st.integers(1, 3))
def test_unknown_takes_the_place_of_all_others(text, other, unknown, least):
    vocabulary = Vocabulary(text, unknown=unknown, min_count=least)
    ids = vocabulary.encode(other)
    assert vocabulary.tokens[0] == unknown
    kept = {c for c in text if text.count(c) >= least}
    assert set(vocabulary.tokens) == kept | {unknown}
    assert vocabulary.decode(ids) == "".join(c if c in kept else unknown for c in other)
    assert np.array_equal(vocabulary.encode(list(other)), ids)


def test_ids_do_not_depend_on_the_order_of_the_text():
    assert Vocabulary("abc").tokens == Vocabulary("cabba").tokens == ("a", "b", "c")


def test_tokens_seen_too_rarely_are_left_out():
    words = ["a", "a", "b", "<unk>"]
    assert Vocabulary(words, min_count=2).tokens == ("a",)
    assert Vocabulary(words, unknown="<unk>").tokens == ("<unk>", "a", "b")
    assert "b" not in Vocabulary(words, min_count=2)


def test_empty_texts():
    vocabulary = Vocabulary("ab")
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode([]).dtype == np.int64
    assert vocabulary.decode([]) == ""
    assert Vocabulary(["ab"]).decode([]) == []


def test_lone_surrogates_are_characters_too():
    text = "a\ud800"  # as `errors="surrogateescape"` and JSON make them
    assert Vocabulary(text).decode(Vocabulary(text).encode(text)) == text


def test_half_a_million_characters():
    text = "the quick brown fox 😀 " * 24_000
    vocabulary = Vocabulary(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_vocabulary_repr():
    assert repr(Vocabulary("ab", unknown="?")) == "Vocabulary(3 characters, unknown='?')"


@pytest.mark.parametrize("tokens", ["abd", list("abd")])
def test_an_unknown_token_is_named(tokens):
    message = r"token 'd' at position 2 is not among the 3 tokens .* unknown='<unk>'"
    with pytest.raises(ValueError, match=message):
        Vocabulary("abc").encode(tokens)
    with pytest.raises(ValueError, match="token 'd'"):
        Vocabulary(["abc", "a", "b"]).encode(list("abd"))


def test_vocabulary_of_multi_letter_tokens_has_no_letters():
    vocabulary = Vocabulary("", unknown="<unk>")
    assert vocabulary.decode(vocabulary.encode("xy")) == "<unk><unk>"


def test_vocabulary_errors():
    with pytest.raises(ValueError, match="no token occurs 1 times among 0"):
        Vocabulary("")
    with pytest.raises(ValueError, match="no token occurs 3 times among 2"):
        Vocabulary("ab", min_count=3)
    with pytest.raises(ValueError, match="min_count=0: expected at least 1"):
        Vocabulary("ab", min_count=0)
    with pytest.raises(TypeError, match=r"a token must be a str, got 1 \(int\)"):
        Vocabulary([1, 2])
    with pytest.raises(TypeError, match=r"vocabulary of tokens, but got a text.*text\.split"):
        Vocabulary(["the", "cat"]).encode("the cat")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0, 3], IndexError, r"id 3 at position 1 is not in 0\.\.2, the ids of these 3 tokens"),
        ([-1], IndexError, r"id -1 at position 0 is not in 0\.\.2"),
        ([0.0], DtypeError, "ids have dtype float64: expected integers"),
        ([[0]], ShapeError, r"ids have shape \(1, 1\): expected one sequence, \(T,\)"),
    ],
)
def test_decode_errors(ids, error, message):
    with pytest.raises(error, match=message):
        Vocabulary("abc").decode(ids)


# Streams for truncated BPTT


@given(n=st.integers(2, 60), N=sizes, T=sizes)
def test_streams_in_order_are_the_text(n, N, T):
    assume(n > N)
    ids = np.random.default_rng(n).permutation(n)
    pieces = list(bptt_batches(ids, batch_size=N, steps=T))
    S = (n - 1) // N
    assert [len(x) for x, _ in pieces[:-1]] == [T] * (len(pieces) - 1)
    assert 1 <= len(pieces[-1][0]) <= T
    assert len(bptt_batches(ids, batch_size=N, steps=T)) == len(pieces)
    x, y = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    assert x.shape == y.shape == (S, N)
    assert x.dtype == y.dtype == np.int64
    assert x.T.ravel().tolist() == ids[: N * S].tolist()
    assert y.T.ravel().tolist() == ids[1 : N * S + 1].tolist()
    assert n - (N * S + 1) == (n - 1) % N


def test_batches_of_streams_own_their_memory():
    ids = np.arange(20)
    for x, y in bptt_batches(ids, batch_size=3, steps=4):
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous
        x[...] = -1
    assert ids.tolist() == list(range(20))


def test_bptt_errors():
    ids = np.arange(7)
    message = "7 ids are too few for batch_size=7 streams: expected at least 8"
    with pytest.raises(ShapeError, match=message):
        bptt_batches(ids, batch_size=7, steps=1)
    with pytest.raises(ShapeError, match="0 ids are too few"):
        bptt_batches([], batch_size=1, steps=1)
    with pytest.raises(ShapeError, match=r"shape \(7, 1\)"):
        bptt_batches(ids[:, None], batch_size=1, steps=1)
    with pytest.raises(DtypeError, match="float64"):
        bptt_batches(ids / 2, batch_size=1, steps=1)
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        bptt_batches(ids, batch_size=0, steps=1)
    with pytest.raises(ValueError, match="steps=0: expected at least 1"):
        bptt_batches(ids, batch_size=1, steps=0)
    with pytest.raises(TypeError, match=r"steps=2\.0: expected an integer"):
        bptt_batches(ids, batch_size=1, steps=2.0)


# Windows of a series


@given(
    T=st.integers(2, 40),
    D=st.integers(0, 3),
    length=sizes,
    horizon=sizes,
    stride=sizes,
    N=sizes,
    targets=st.sampled_from(["next", "sequence"]),
)
def test_windows_and_targets_match_a_loop(T, D, length, horizon, stride, N, targets):
    assume(length + horizon <= T)
    series = np.arange(T * max(D, 1), dtype=np.float32).reshape((T, D) if D else (T,))
    rows = series.reshape(T, -1)
    expected = []
    for s in range(0, T, stride):
        if s + length - 1 + horizon >= T:
            break
        x = [rows[s + t] for t in range(length)]
        y = [rows[s + t + horizon] for t in range(length)]
        expected.append((np.array(x), np.array(y) if targets == "sequence" else y[-1]))
    pairs = windows(
        series,
        length=length,
        horizon=horizon,
        stride=stride,
        batch_size=N,
        targets=targets,
        shuffle=False,
    )
    found = []
    for x, y in pairs:
        assert x.dtype == y.dtype == np.float32
        assert x.shape[1] == y.shape[-2] <= N
        found += [(x[:, n], y[..., n, :]) for n in range(x.shape[1])]
    assert equal(found, expected)
    assert len(pairs) == -(-len(expected) // N)


def test_shuffled_windows_are_the_same_windows():
    series = np.arange(30.0)
    pairs = windows(series, length=4, batch_size=5, rng=3)
    x = np.concatenate([x for x, _ in pairs], axis=1)[:, :, 0]
    y = np.concatenate([y for _, y in pairs])  # the second epoch
    assert sorted(x[0]) == list(range(26))
    assert x[0].tolist() != sorted(x[0])
    assert np.array_equal(np.diff(x, axis=0), np.ones((3, 26)))
    assert sorted(y[:, 0]) == list(range(4, 30))
    assert (y[:, 0] - 4).tolist() != x[0].tolist()


def test_windows_errors():
    series = np.zeros(10)
    with pytest.raises(ShapeError, match=r"10 steps: a window of length=8 .* horizon=3 need 11"):
        windows(series, length=8, horizon=3, batch_size=1)
    with pytest.raises(ShapeError, match="series has 0 steps"):
        windows([], length=1, batch_size=1)
    with pytest.raises(ShapeError, match=r"shape \(10, 1, 1\): expected \(T,\) or \(T, D\)"):
        windows(series[:, None, None], length=2, batch_size=1)
    with pytest.raises(ValueError, match="targets='last': expected 'next' or 'sequence'"):
        windows(series, length=2, batch_size=1, targets="last")
    for name in ("length", "batch_size", "horizon", "stride"):
        with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
            windows(series, **{"length": 2, "batch_size": 1, name: 0})
    with pytest.raises(ShapeError, match="series is ragged"):
        windows([[1], [1, 2]], length=1, batch_size=1)
    with pytest.raises(ShapeError, match="ids is ragged"):
        bptt_batches([[1], [1, 2]], steps=1, batch_size=1)


# Minibatches


@given(n=st.integers(1, 40), N=sizes, seed=seeds, epochs=st.integers(1, 3))
def test_each_epoch_is_a_permutation(n, N, seed, epochs):
    loader = batches(np.arange(n), batch_size=N, rng=seed)
    for _ in range(epochs):
        parts = list(loader)
        assert len(parts) == len(loader) == -(-n // N)
        assert all(len(part) == N for part in parts[:-1])
        assert sorted(np.concatenate(parts)) == list(range(n))


def test_each_epoch_has_an_order_of_its_own():
    loader = batches(np.arange(50), batch_size=50, rng=0)
    orders = {tuple(order) for _ in range(5) for order in loader}
    assert len(orders) == 5
    assert tuple(range(50)) not in orders


@given(seeds)
def test_the_same_seed_gives_the_same_batches(seed):
    first, second, third = (
        list(itertools.chain(*(batches(np.arange(30), batch_size=7, rng=rng) for _ in range(2))))
        for rng in (seed, seed, seed + 1)
    )
    assert equal(first, second)
    assert not equal(first, third)


def test_a_generator_is_drawn_from_once_and_none_is_fresh():
    rng = np.random.default_rng(5)
    loader = batches(np.arange(50), batch_size=50, rng=rng)
    after = rng.bit_generator.state
    orders = [*loader, *loader]
    assert rng.bit_generator.state == after
    other = batches(np.arange(50), batch_size=50, rng=rng)
    assert not equal(list(other), orders[:1])
    assert equal([*batches(np.arange(50), batch_size=50, rng=5)], orders[:1])
    fresh = [next(iter(batches(np.arange(50), batch_size=50))) for _ in range(2)]
    assert not equal(*fresh)


@given(n=st.integers(1, 20), N=sizes)
def test_drop_last(n, N):
    assume(n >= N)
    parts = list(batches(np.arange(n), batch_size=N, shuffle=False, drop_last=True))
    assert len(parts) == n // N
    assert np.concatenate(parts).tolist() == list(range(n - n % N))


def test_columns_stay_together():
    n, T = 11, 4
    x = np.arange(T * n * 2).reshape(T, n, 2)
    y = np.arange(n, dtype=np.int8)
    ragged = [np.full((i, 3), i) for i in range(n)]
    names = tuple("abcdefghijk")
    loader = batches(x, y, ragged, names, batch_size=3, axis=(1, 0, 0, 0), rng=1)
    for bx, by, sequences, letters in loader:
        assert bx.shape == (T, len(by), 2)
        assert by.dtype == np.int8
        assert np.array_equal(bx, x[:, by])
        assert isinstance(sequences, list)
        assert [s.shape for s in sequences] == [(i, 3) for i in by]
        assert letters == [names[i] for i in by]


def test_one_column_is_not_wrapped():
    assert equal(list(batches(np.arange(3), batch_size=3, shuffle=False)), [np.arange(3)])
    assert list(batches(["a", "b"], batch_size=1, shuffle=False)) == [["a"], ["b"]]
    (batch,) = batches(np.arange(6).reshape(2, 3), batch_size=3, axis=-1, shuffle=False)
    assert batch.shape == (2, 3)
    (batch,) = batches(np.zeros((2, 3)), batch_size=3, axis=np.int64(1), shuffle=False)
    assert batch.shape == (2, 3)


def test_batches_errors():
    x = np.zeros((4, 2))
    with pytest.raises(ShapeError, match="columns of 4, 3 samples along axes 0, 0: all must"):
        batches(x, [1, 2, 3], batch_size=1)
    with pytest.raises(ShapeError, match="0 samples, too few: no batch"):
        batches([], batch_size=1)
    with pytest.raises(ShapeError, match="4 samples, too few for a whole batch of 5"):
        batches(x, batch_size=5, drop_last=True)
    with pytest.raises(ShapeError, match=r"column 1 has shape \(4,\), so no axis 1"):
        batches(x.T, x[:, 0], batch_size=1, axis=1)
    with pytest.raises(ShapeError, match=r"column 0 has shape \(\), so no axis 0"):
        batches(3, batch_size=1)
    with pytest.raises(ValueError, match="column 0 is a list: its samples' axis is 0, not 1"):
        batches([1], batch_size=1, axis=1)
    with pytest.raises(ValueError, match="1 axes for 2 columns"):
        batches(x, x, batch_size=1, axis=(0,))
    with pytest.raises(ValueError, match="batch_size=-1: expected at least 1"):
        batches(x, batch_size=-1)
    with pytest.raises(TypeError, match="at least one array or list"):
        batches(batch_size=1)


# The position


def make(kind, rng):
    if kind == "bptt":
        return bptt_batches(np.arange(32), batch_size=3, steps=3)
    if kind == "windows":
        return windows(np.arange(16.0), length=3, stride=2, batch_size=2, rng=rng)
    if kind == "in order":
        return batches(np.arange(7), batch_size=2, shuffle=False)
    return batches(np.arange(11), list("abcdefghijk"), batch_size=3, rng=rng)


kinds = pytest.mark.parametrize("kind", ["bptt", "windows", "in order", "shuffled"])


def follow(loader, epochs):
    """Each of the next epochs, as a list of its batches."""
    return [list(loader) for _ in range(epochs)]


@kinds
@given(seed=seeds, epoch=st.integers(0, 2), stop=st.integers(0, 3), restarts=st.integers(1, 3))
def test_stop_anywhere_and_continue(kind, seed, epoch, stop, restarts):
    whole = make(kind, seed)
    assert len(whole) == 4
    expected = follow(whole, 5)

    loader = make(kind, seed)
    follow(loader, epoch)
    for k, _ in enumerate(loader):
        state = json.loads(json.dumps(loader.state()))
        if k == stop:
            break
    for _ in range(restarts):  # a state survives being restored and saved again
        loader = make(kind, None)
        loader.restore(state)
        state = loader.state()
    rest = follow(loader, 5 - epoch)
    assert equal(rest, [expected[epoch][stop + 1 :], *expected[epoch + 1 :]])


@kinds
@given(seed=seeds, epochs=st.integers(0, 3))
def test_stop_between_epochs_and_continue(kind, seed, epochs):
    expected = follow(make(kind, seed), 5)
    loader = make(kind, seed)
    follow(loader, epochs)
    continued = make(kind, None)
    continued.restore(loader.state())
    assert equal(follow(continued, 5 - epochs), expected[epochs:])
    assert equal(follow(loader, 5 - epochs), expected[epochs:])


def test_a_restore_rewinds_the_same_object():
    loader = make("shuffled", 0)
    state = loader.state()
    first = follow(loader, 2)
    loader.restore(state)
    assert equal(follow(loader, 2), first)


def test_breaking_off_begins_a_new_epoch():
    expected = follow(make("shuffled", 0), 2)
    loader = make("shuffled", 0)
    next(iter(loader))
    assert equal(list(loader), expected[1])


def test_the_state_is_of_the_newest_iteration():
    loader = make("shuffled", 0)
    old = iter(loader)
    next(old)
    next(iter(loader))
    list(old)
    assert (loader.state()["epoch"], loader.state()["position"]) == (1, 1)


def test_a_state_is_a_copy():
    loader = make("shuffled", 0)
    state = loader.state()
    state["sizes"]["samples"] = 0
    state["position"] = 3
    assert loader.state()["sizes"]["samples"] == 11
    assert loader.state()["position"] == 0


def test_restore_errors():
    loader = make("shuffled", 0)
    state = loader.state()
    with pytest.raises(StateError, match=r"state is of bptt_batches\(ids=32.*, not of batches\("):
        loader.restore(make("bptt", 0).state())
    smaller = batches(np.arange(8), batch_size=3).state()
    with pytest.raises(StateError, match=r"batches\(samples=8.*not of batches\(samples=11"):
        loader.restore(smaller)
    with pytest.raises(StateError, match=r"shuffle=False.*shuffle=True"):
        batches(np.arange(7), batch_size=2).restore(make("in order", 0).state())
    for change, message in [
        ({"position": 5}, r"position 5 of the state: expected 0\.\.4"),
        ({"position": None}, "position None of the state"),
        ({"epoch": -1}, r"epoch -1 of the state: expected 0, 1, \.\.\."),
        ({"seed": None}, r"seed None of the state does not fit batches\("),
        ({"seed": "x"}, "seed 'x' of the state"),
        ({"seed": -1}, "seed -1 of the state"),
        ({"kind": 3}, r"not a state of batches\("),
    ]:
        with pytest.raises(StateError, match=message):
            loader.restore({**state, **change})
    with pytest.raises(StateError, match=r"not a state of batches\(.*: 7"):
        loader.restore(7)
    assert loader.state() == state


# Padding


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from(["f4", "i8", "?"]),
    st.sampled_from([0, 1]),
)
def test_padding_matches_a_loop(lengths, rest, dtype, value):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 2, (length, *rest)).astype(dtype) for length in lengths]
    array, found = pad(sequences, value=value)
    assert found.tolist() == lengths
    assert found.dtype == np.int64
    assert array.shape == (max(lengths), len(lengths), *rest)
    assert array.dtype == np.dtype(dtype)
    for n, sequence in enumerate(sequences):
        assert np.array_equal(array[: lengths[n], n], sequence)
        assert (array[lengths[n] :, n] == value).all()


def test_an_empty_list_fits_any_sequence():
    array, lengths = pad([[], [[1, 2], [3, 4]], []])
    assert array.tolist() == [[[0, 0], [1, 2], [0, 0]], [[0, 0], [3, 4], [0, 0]]]
    assert array.dtype == np.int64
    assert lengths.tolist() == [0, 2, 0]


def test_padding_dtypes():
    assert pad([[1], [2.5]])[0].dtype == np.float64
    array, _ = pad([[1, 2], [3]], value=np.nan, dtype=np.float32)
    assert array.dtype == np.float32
    assert np.isnan(array[1, 1])
    assert pad([[1, 2], [3]], value=1j, dtype=complex)[0][1, 1] == 1j
    assert pad([[1, 2], [3]], value=np.float64(4))[0].tolist() == [[1, 3], [2, 4]]
    assert pad([[True, True], [True]], value=True)[0].tolist() == [[True, True], [True, True]]
    assert pad(iter([[1, 2], [3]]), value=-1)[0].tolist() == [[1, 3], [2, -1]]


def test_padding_errors():
    message = r"sequence 2 has shape \(1, 3\), but sequence 1 has \(1, 2\): all axes but the first"
    with pytest.raises(ShapeError, match=message):
        pad([[], np.zeros((1, 2)), np.zeros((1, 3))])
    with pytest.raises(ShapeError, match=r"sequence 1 has shape \(0, 3\)"):
        pad([np.zeros((1, 2)), np.zeros((0, 3))])
    with pytest.raises(ShapeError, match="sequence 1 is a single value"):
        pad([[1], 2])
    with pytest.raises(ShapeError, match="sequence 1 is ragged"):
        pad([[[1]], [[1], [2, 3]]])
    with pytest.raises(ShapeError, match="0 sequences without a step"):
        pad([])
    with pytest.raises(ShapeError, match="2 sequences without a step"):
        pad([[], []])
    for value in (0.5, np.nan, np.inf, -np.inf, np.float32(0.5), 2**63, 10**400):
        with pytest.raises(DtypeError, match=f"value={value} cannot pad int64"):
            pad([[1]], value=value)
    for sequence in ([1], [1.5], [True]):
        for value in (1j, 1 + 0j, np.complex64(1)):
            with pytest.raises(DtypeError, match=r"value=.*j\)? cannot pad"):
                pad([sequence], value=value)
    for value in (2, -1, 0.5, np.nan):
        with pytest.raises(DtypeError, match=f"value={value} cannot pad bool"):
            pad([[True]], value=value)
    with pytest.raises(DtypeError, match="value=300 cannot pad uint8"):
        pad([[1]], value=300, dtype=np.uint8)
