"""Attention layers and the encoder-decoder: equations, gradients, lengths, decoding, misuse."""

import functools

import numpy as np
import pytest

from tinygrad_rnn import Tensor, data, grad, nn, no_grad, optim, train
from tinygrad_rnn.errors import DtypeError, ShapeError
from tinygrad_rnn.functional import cross_entropy
from tinygrad_rnn.nn.attention import BahdanauAttention, LuongAttention
from tinygrad_rnn.nn.seq2seq import EncoderDecoder
from tinygrad_rnn.testing import check_module

from .test_cells import randomise
from .test_errors_nn import says

# --- attention -------------------------------------------------------------------------------

T, U, N, H, K = 4, 3, 3, 2, 3


def attentions():
    f64 = {"dtype": np.float64, "rng": 0}
    return {
        "bahdanau": randomise(BahdanauAttention(H, K, 4, **f64)),
        "general": randomise(LuongAttention(H, K, **f64)),
        "dot": LuongAttention(K, score="dot", **f64),
    }


kinds = pytest.mark.parametrize("kind", attentions())


def given_to(attention, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((U, N, attention.query_size)), rng.standard_normal((T, N, K))


def one_score(kind, p, q, k):
    """Return the score of one step by the equation of the paper."""
    if kind == "bahdanau":
        return p["v"] @ np.tanh(q @ p["W_q"] + k @ p["W_k"] + p["b"])
    return q @ p["W"] @ k if kind == "general" else q @ k


@kinds
def test_attention_is_its_equation_over_the_valid_steps(kind):
    attention, lengths = attentions()[kind], [4, 2, 0]
    query, keys = given_to(attention)
    context, weights = attention(query, keys, lengths=lengths)
    assert context.shape == (U, N, K)
    want = np.zeros((U, N, T))
    for u in range(U):
        for n, length in enumerate(lengths):
            e = [one_score(kind, attention.state_dict(), query[u, n], keys[t, n])
                 for t in range(length)]  # fmt: skip
            want[u, n, :length] = np.exp(e) / np.sum(np.exp(e))
    np.testing.assert_allclose(weights.data, want, rtol=1e-12)
    np.testing.assert_allclose(context.data, np.einsum("unt,tnk->unk", want, keys), atol=1e-14)
    np.testing.assert_allclose(weights.data.sum(2), [[1, 1, 0]] * U, rtol=1e-12)


@kinds
def test_one_query_a_mask_and_values_beyond_the_end(kind):
    attention = attentions()[kind]
    query, keys = given_to(attention)
    context, weights = attention(query, keys, lengths=[4, 2, 1])
    mask = np.arange(T)[:, None] < np.array([4, 2, 1])
    other = np.where(mask[:, :, None], keys, 1e6)
    for u in range(U):
        c, w = attention(query[u], other, mask=mask)
        np.testing.assert_allclose(c.data, context.data[u], rtol=1e-12)
        np.testing.assert_allclose(w.data, weights.data[u], rtol=1e-12)


@kinds
@pytest.mark.parametrize("lengths", [None, [4, 1, 0]])
def test_gradients_of_attention(kind, lengths):
    attention = attentions()[kind]
    check_module(attention, *given_to(attention), lengths=lengths)


@kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_not_even_a_nan_in_a_step_that_does_not_count_matters(kind, value):
    attention, found = attentions()[kind], []
    query, keys = given_to(attention)
    mask = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)  # of the third: none
    for odd in (0.0, value):
        x = Tensor(np.where(mask[:, :, None], keys, odd), requires_grad=True)
        context, weights = attention(query, x, mask=mask)
        loss = (context * context).sum() + (weights * weights).sum()
        found.append([context.data, weights.data, *grad(loss, [x, *attention.parameters()])])
    for want, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, want)
    assert found[1][2][mask].any()
    assert not found[1][2][~mask].any()


@pytest.mark.parametrize(("dtype", "scale"), [(np.float16, 100), (np.float32, 1e33)])
def test_weights_sum_to_1_however_low_the_scores_of_the_valid_steps_are(dtype, scale):
    attention = LuongAttention(1, score="dot", dtype=dtype)
    query, keys = dtype([[-scale]]), dtype([[[1]], [[1]], [[0]]])
    context, weights = attention(query, keys, lengths=[2])
    np.testing.assert_array_equal(weights.data, [[0.5, 0.5, 0]])
    np.testing.assert_array_equal(context.data, [[1]])


def test_attention_says_what_does_not_fit():
    attention = BahdanauAttention(H, K, rng=0)
    query, keys = given_to(attention)
    with says(ShapeError, "BahdanauAttention: mask has shape (3, 4), expected (T=4, N=3)"):
        attention(query, keys, mask=np.ones((N, T), bool))
    with says(DtypeError, "BahdanauAttention: mask is float64, expected bool"):
        attention(query, keys, mask=np.ones((T, N)))
    with says(ValueError, "pass lengths or mask, not both"):
        attention(query, keys, mask=np.ones((T, N), bool), lengths=[1, 1, 1])
    with says(ShapeError, "lengths have shape (2,), expected (3,)"):
        attention(query, keys, lengths=[1, 1])
    with says(ShapeError, "lengths: length 5 of sequence 1 is not in 0..4"):
        attention(query, keys, lengths=[1, 5, 1])
    with says(DtypeError, "lengths are integers, got float64"):
        attention(query, keys, lengths=[1.0, 1.0, 1.0])
    with says(ShapeError, "keys have shape (4, 3, 2), expected (T, N, 3)"):
        attention(query, keys[:, :, :2])
    with says(ShapeError, "query has shape (3, 3, 3), expected (3, 2) or (U, 3, 2)"):
        attention(keys[:3], keys)
    with says(ShapeError, "score='dot' needs queries and keys of one size", "query_size=2"):
        LuongAttention(2, 3, score="dot")
    with says(ValueError, 'score is "general" or "dot", got \'concat\''):
        LuongAttention(2, score="concat")
    with says(ValueError, "LuongAttention: query_size=0 must be a whole number, 1 or more"):
        LuongAttention(0, 3)
    with says(ValueError, "attention_size=0 must be a whole number, 1 or more"):
        BahdanauAttention(2, 3, 0)
    for wrong in (np.zeros((0, N, K)), np.zeros((T, 0, K))):
        for attend in attentions().values():
            with says(ShapeError, f"keys have shape {wrong.shape}, expected (T, N, 3), T and N 1"):
                attend(query, wrong)
    with says(TypeError, "query is a tuple: a recurrent layer returns (out, state); pass on out"):
        attention((Tensor(query), Tensor(query)), keys)
    with says(DtypeError, "BahdanauAttention: keys is <U3, not numbers"):
        attention(query, "abc")
    with says(ShapeError, "BahdanauAttention: keys has parts of unequal length"):
        attention(query, [[[1.0]], [[1.0, 2.0]]])
    with says(ValueError, "LuongAttention: query_size=2.5 must be a whole number, 1 or more"):
        LuongAttention(2.5)


# --- the encoder-decoder ---------------------------------------------------------------------

V_S, V_T = 6, 5
GO, EOS = 3, 1
SOURCES = [[5, 4, 3, 2], [2, 1], [0]]
TARGETS = [[2, 4], [4, 2, 0], [0]]
READS = [None, "bahdanau", "luong"]
reads = pytest.mark.parametrize("attention", READS)


def build(attention=None, layer=nn.LSTM, seed=0, **settings):
    settings = {"go": GO, "eos": EOS, "embedding_size": 2, "dtype": np.float64} | settings
    model = EncoderDecoder(V_S, V_T, 3, layer=layer, attention=attention, rng=seed, **settings)
    randomise(model, seed)
    model.passes.data = np.zeros((), model.passes.dtype)
    return model


def cell_layer(D, H, layers, **settings):
    """A layer of a bare cell, whose state has no axis of layers."""
    return nn.Recurrent(nn.GRUCell(D, H, **settings))


@reads
@pytest.mark.parametrize(
    ("layer", "layers"), [(nn.LSTM, 1), (nn.GRU, 2), (nn.RNN, 1), (cell_layer, 1)]
)
def test_gradients_of_the_whole(attention, layer, layers):
    model = build(attention, layer, num_layers=layers)
    source, lengths = data.pad(SOURCES[:2])
    target, ends = data.pad(TARGETS[:2])
    check_module(
        model, source, target, source_lengths=lengths, target_lengths=ends, blocks="one",
        outputs="all",
    )  # fmt: skip


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_d9_the_encoders_last_state_is_the_decoders_first_and_gradients_reach_x1(layer):
    model = build(layer=layer)
    source, target = np.array([[5], [4], [2]]), np.array([[2], [4]])
    x = model.source_embedding([[2], [4], [5]])  # reversed: x(1) is read last
    _, state = model.encoder(x)
    out, _ = model.decoder(model.target_embedding([[GO], [2], [4]]), state)
    want = model.linear(out)
    logits = model(source, target)
    np.testing.assert_array_equal(logits.data, want.data)
    loss = cross_entropy(logits, [[2], [4], [EOS]])
    np.testing.assert_allclose(
        model.loss(source, target, reduction="sum").item(), loss.item(), rtol=1e-14
    )
    g = grad(loss, model.source_embedding.W)
    assert (np.abs(g[[5, 4, 2]]).max(1) > 1e-6).all()  # each stands in one step alone
    assert not g[[0, 1, 3]].any()


@reads
def test_a_ragged_batch_is_each_pair_by_itself(attention):
    model = build(attention)
    logits = model(SOURCES, TARGETS)
    labels, mask = model.labels(TARGETS)
    assert logits.shape == (4, 3, V_T)
    losses = []
    for n, (s, t) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = model([s], [t])
        np.testing.assert_allclose(alone.data[:, 0], logits.data[: len(t) + 1, n], rtol=1e-12)
        assert labels[mask[:, n], n].tolist() == [*t, EOS]
        losses.append(model.loss([s], [t], reduction="sum").item())
    np.testing.assert_allclose(
        model.loss(SOURCES, TARGETS).item(), sum(losses) / sum(len(t) + 1 for t in TARGETS)
    )


@reads
def test_what_stands_beyond_a_length_does_not_matter(attention):
    model = build(attention)
    (source, lengths), (target, ends) = data.pad(SOURCES), data.pad(TARGETS)
    given = {"source_lengths": lengths, "target_lengths": ends}
    want = model.loss(source, target, **given)
    noise = data.pad(SOURCES, value=99)[0], data.pad(TARGETS, value=-7)[0]
    loss = model.loss(*noise, **given)
    assert loss.item() == want.item() == model.loss(SOURCES, TARGETS).item()
    for p in model.parameters():
        np.testing.assert_array_equal(grad(loss, p), grad(want, p))
    answers = model.greedy(SOURCES)
    for found in (model.greedy(noise[0], source_lengths=lengths), model.beam(SOURCES, 1)):
        assert [a.tolist() for a in found] == [a.tolist() for a in answers]


@reads
def test_the_source_is_reversed_within_its_length_and_its_alignment_put_back(attention):
    model, plain = build(attention), build(attention, reverse=False)
    backwards = [s[::-1] for s in SOURCES]
    np.testing.assert_array_equal(model(SOURCES, TARGETS).data, plain(backwards, TARGETS).data)
    assert (model(SOURCES, TARGETS).data != plain(SOURCES, TARGETS).data).any()
    if attention is None:
        return
    _, weights = model(SOURCES, TARGETS, alignment=True)
    _, other = plain(backwards, TARGETS, alignment=True)
    assert weights.shape == (4, 3, 4)
    np.testing.assert_allclose(weights.data.sum(2), 1, rtol=1e-12)
    for n, s in enumerate(SOURCES):
        np.testing.assert_array_equal(
            weights.data[:, n, : len(s)], other.data[:, n, : len(s)][:, ::-1]
        )
        assert not weights.data[:, n, len(s) :].any()


def test_without_eos_answers_and_targets_have_no_end():
    model = build(eos=None, max_length=3)
    targets = np.array([[2, 4], [4, 1], [0, 2]])
    labels, mask = model.labels(targets)
    assert mask is None
    np.testing.assert_array_equal(labels, targets)
    assert model([[1], [2, 3]], targets).shape == (3, 2, V_T)
    assert [len(a) for a in model.greedy([[1], [2, 3]])] == [3, 3]


# --- teacher forcing -------------------------------------------------------------------------


@reads
def test_step_by_step_with_the_right_symbols_is_all_steps_at_once(attention):
    model = build(attention)
    want = model(SOURCES, TARGETS)
    model.teacher_forcing = 1 - 1e-12
    found = model(SOURCES, TARGETS)
    np.testing.assert_allclose(found.data, want.data, rtol=1e-12)
    for p in model.parameters():
        np.testing.assert_allclose(grad(found.sum(), p), grad(want.sum(), p), atol=1e-12)


@reads
def test_without_teacher_forcing_the_model_reads_what_it_found_most_probable(attention):
    model = build(attention, teacher_forcing=0.0, max_length=9)
    target = np.full((4, 3), 2)
    logits = model(SOURCES, target).data
    model.linear.b.data[[GO, EOS]] = -100.0  # so that what it writes may be passed as a target
    free = model(SOURCES, target).data
    assert (free.argmax(2) != logits.argmax(2)).any()
    forced = model.eval()(SOURCES, free.argmax(2)[:-1])  # evaluation forces always
    np.testing.assert_allclose(forced.data, free, rtol=1e-12)


def test_free_running_never_reads_go_which_no_answer_holds():
    model = build(teacher_forcing=0.0, max_length=9)
    model.linear.b.data[[GO, 4]] = 200.0, 100.0  # <go> is the most probable, then 4
    read, embed = [], model.target_embedding.forward
    model.target_embedding.forward = lambda ids: read.append(ids) or embed(ids)
    logits = model(SOURCES, np.full((3, 3), 2))
    np.testing.assert_array_equal(np.concatenate(read)[1:], 4)
    assert np.isfinite(logits.data).all()  # what is asked is as it was


def test_only_passes_that_train_count():
    model = build(teacher_forcing=lambda passes: 0.5)
    with no_grad():
        model(SOURCES, TARGETS)
    assert model.passes.item() == 0
    model(SOURCES, TARGETS)
    assert model.passes.item() == 1


def test_a_model_trained_with_a_schedule_is_loaded_without_one_and_the_reverse(tmp_path):
    with_one, without = build(teacher_forcing=lambda passes: 0.5), build(seed=1)
    with_one(SOURCES, TARGETS)
    without.load_state_dict(with_one.state_dict())
    want = with_one.eval()(SOURCES, TARGETS).data
    np.testing.assert_array_equal(without(SOURCES, TARGETS).data, want)
    without.save(tmp_path / "model.npz")
    assert with_one.load(tmp_path / "model.npz").passes.item() == 1


def test_each_symbol_is_forced_with_the_probability_of_the_schedule():
    seen, read = [], []

    def schedule(passes):
        seen.append(passes)
        return 0.7

    model = build(teacher_forcing=schedule)
    model.linear.b.data[4] = 100.0  # what the model finds most probable
    embed = model.target_embedding.forward
    model.target_embedding.forward = lambda ids: read.append(ids) or embed(ids)
    for _ in range(3):
        model([[1]] * 500, np.full((2, 500), 2))
    found = np.array(read)[:, 0].reshape(3, 3, 500)
    assert (found[:, 0] == GO).all()
    for step in (found[:, 1], found[:, 2]):
        assert set(np.unique(step)) == {2, 4}
        assert abs((step == 2).mean() - 0.7) < 4 * np.sqrt(0.21 / step.size)
    assert seen == [0, 1, 2]
    model.eval()([[1]], [[2]])
    assert seen == [0, 1, 2]
    assert model.state_dict()["passes"] == 3
    assert not model.passes.requires_grad


def test_a_schedule_goes_on_where_a_checkpoint_stopped(tmp_path):
    def fit(path, epochs, resume=False):
        model = build(teacher_forcing=lambda passes: 0.9**passes, dtype=np.float32)
        rows = data.batches(SOURCES, TARGETS, batch_size=1, rng=1)
        train.fit(
            model, rows, lambda m, batch, state: (m.loss(*batch), None),
            optim.Adam(model.parameters(), 0.1), epochs=epochs, checkpoint=tmp_path / path,
            resume=resume, progress=False,
        )  # fmt: skip
        return model.state_dict()

    want = fit("whole.npz", 3)
    fit("parts.npz", 1)
    found = fit("parts.npz", 3, resume=True)
    assert want["passes"] == 9
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value)


# --- answers ---------------------------------------------------------------------------------


@reads
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, cell_layer])
def test_a_greedy_answer_is_what_the_logits_of_that_answer_say(attention, layer):
    model = build(attention, layer, max_length=6, seed=5)
    answers = model.greedy(SOURCES)
    assert len({len(a) for a in answers}) > 1 or len(answers[0]) == 6
    for n, answer in enumerate(answers):
        if not len(answer):
            continue
        logits = model(SOURCES[n : n + 1], [answer]).data[:, 0]
        logits[:, GO] = -np.inf
        best = logits.argmax(1).tolist()
        assert best[: len(answer)] == answer.tolist()
        assert best[-1] == EOS or len(answer) == 6


@reads
@pytest.mark.parametrize("layer", [nn.LSTM, cell_layer])
def test_a_beam_of_a_batch_is_the_beam_of_each_source(attention, layer):
    model = build(attention, layer, max_length=5, seed=3)
    together = model.beam(SOURCES, 3)
    for s, answer in zip(SOURCES, together, strict=True):
        assert model.beam([s], width=3)[0].tolist() == answer.tolist()


@reads
def test_a_wide_beam_finds_the_most_probable_answer(attention):
    changed = 0
    for seed in range(4):
        model = build(attention, max_length=1, seed=seed)
        for s, answer in zip(SOURCES, model.beam(SOURCES, V_T), strict=True):
            cost = {}
            for symbol in (0, 2, 4):  # <go> is never written: its share goes to the others
                logits = model([s], [[symbol]]).data[:, 0]
                logits[:, GO] = -np.inf
                log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
                cost[symbol,] = log_p[0, symbol] + log_p[1].max()  # it may end, or go on
                cost[()] = log_p[0, EOS]
            assert tuple(answer) == max(cost, key=cost.get)
            changed += model.greedy([s])[0].tolist() != answer.tolist()
    assert changed  # greedy search does not always find it


def test_samples_are_repeatable_and_go_is_never_written():
    model = build(max_length=8)
    model.linear.b.data[GO] = 50.0
    drawn = [[a.tolist() for a in model.sample(SOURCES, rng=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    answers = [*drawn[0], *model.greedy(SOURCES), *model.beam(SOURCES, 2)]
    assert all(GO not in a and EOS not in a for a in answers)
    greedy = [a.tolist() for a in model.greedy(SOURCES)]
    assert greedy == [a.tolist() for a in model.sample(SOURCES, top_k=1)]


def test_answers_are_written_without_dropout_and_the_mode_stays_as_it_was():
    model = build(layer=functools.partial(nn.LSTM, dropout=0.9), num_layers=2, max_length=8)
    model.linear.b.data[...] = 0
    model.linear.W.data *= 20
    found = [[a.tolist() for a in model.greedy(SOURCES)] for _ in range(5)]
    assert all(answers == found[0] for answers in found)
    assert model.training
    assert model.decoder.training
    assert (model(SOURCES, TARGETS).data != model(SOURCES, TARGETS).data).any()
    model.eval().beam(SOURCES, 2)
    assert not model.decoder.training


def test_an_answer_records_nothing_and_float32_stays_float32():
    model = EncoderDecoder(V_S, V_T, 3, attention="bahdanau", rng=0)
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    loss = model.loss(SOURCES, [[2], [3], [4]])
    assert loss.dtype == np.float32
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.grad.copy() for p in trained]
    model.beam(SOURCES, 2)
    for p, g in zip(trained, before, strict=True):
        np.testing.assert_array_equal(p.grad, g)


# --- misuse ----------------------------------------------------------------------------------


def test_symbols_that_cannot_start_or_end():
    with says(ValueError, "EncoderDecoder: go=None: the decoder needs a start symbol"):
        EncoderDecoder(V_S, V_T, 3, go=None)
    for name in ("go", "eos"):
        for symbol in (-1, V_T):
            with says(ValueError, f"{name}={symbol} is not in 0..4, the target vocabulary"):
                EncoderDecoder(V_S, V_T, 3, **{name: symbol})
    for symbol in (1.5, True, "<go>"):
        with says(ValueError, f"go={symbol!r} is not in 0..4, the target vocabulary"):
            EncoderDecoder(V_S, V_T, 3, go=symbol)
    with says(ValueError, "eos=2.5 is not in 0..4, the target vocabulary"):
        EncoderDecoder(V_S, V_T, 3, eos=2.5)
    with says(ValueError, "go and eos are both 2"):
        EncoderDecoder(V_S, V_T, 3, go=2, eos=2)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan"), "always", True])
def test_a_probability_of_teacher_forcing_out_of_range(p):
    with says(ValueError, f"EncoderDecoder: teacher_forcing={p!r} is not in [0, 1]"):
        build(teacher_forcing=p)
    model = build(teacher_forcing=lambda passes: p)
    with says(ValueError, f"teacher_forcing(0)={p!r} is not in [0, 1]"):
        model(SOURCES, TARGETS)


def test_sizes_and_kinds_that_do_not_exist():
    with says(ValueError, "EncoderDecoder: target_size=0 must be a whole number, 1 or more"):
        EncoderDecoder(V_S, 0, 3)
    with says(ValueError, "max_length=0 must be a whole number, 1 or more"):
        build(max_length=0)
    with says(ValueError, "attention is None, 'bahdanau' or 'luong', got 'dot'"):
        build("dot")
    with says(ValueError, "attention is None, 'bahdanau' or 'luong', got ['luong']"):
        build(["luong"])
    with says(DtypeError, "EncoderDecoder: parameters need a floating type, got int64"):
        build(dtype=np.int64)
    with says(ValueError, "EncoderDecoder: hidden_size=8.5 must be a whole number, 1 or more"):
        EncoderDecoder(V_S, V_T, 8.5)
    for name in ("embedding_size", "num_layers", "max_length"):
        with says(ValueError, f"EncoderDecoder: {name}=2.5 must be a whole number, 1 or more"):
            build(**{name: 2.5})


def test_layers_that_cannot_decode():
    with says(TypeError, "EncoderDecoder: layer made Linear, expected a recurrent layer"):
        build(layer=lambda D, H, layers, **settings: nn.Linear(D, H, **settings))
    with says(ValueError, "layer made one of two directions: a decoder cannot read backwards"):
        build(layer=functools.partial(nn.LSTM, bidirectional=True))
    with says(ValueError, "layer made one with batch_first=True, expected (T, N, D)"):
        build(layer=functools.partial(nn.LSTM, batch_first=True))
    with says(ValueError, "layer made one of size 4, expected hidden_size=3"):
        build(layer=lambda D, H, layers, **settings: nn.GRU(D, H + 1, layers, **settings))
    with says(TypeError, "EncoderDecoder: layer='lstm': pass what makes one, as nn.LSTM"):
        build(layer="lstm")
    pair = iter([nn.GRU, functools.partial(nn.GRU, batch_first=True)])
    with says(ValueError, "layer made one with batch_first=True"):
        build(layer=lambda *sizes, **settings: next(pair)(*sizes, **settings))


def test_a_beam_wider_than_the_vocabulary():
    with says(ValueError, "beam: width=6 is wider than the vocabulary of 5 symbols"):
        build().beam(SOURCES, 6)
    for attention in READS:
        with says(ValueError, "beam: width=0 must be a whole number"):
            build(attention).beam(SOURCES, 0)
        with says(ValueError, "beam: width=2.5 must be a whole number"):
            build(attention).beam(SOURCES, 2.5)
        with says(ValueError, "beam: width='3' must be a whole number"):
            build(attention).beam(SOURCES, "3")


def test_targets_that_are_too_long_empty_or_hold_go_or_eos():
    model = build(max_length=2)
    with says(ShapeError, "a target has 3 symbols, more than max_length=2"):
        model(SOURCES, TARGETS)
    assert model(np.ones((3, 1), int), np.full((3, 1), 2), target_lengths=[2]).shape[0] == 4
    with says(ShapeError, "target (0, 3) is empty: T and N must be 1 or more"):
        model(SOURCES, np.zeros((0, 3), int))
    with says(ShapeError, "3 sequences without a step"):
        model(SOURCES, [[], [], []])
    assert build(go=0)(SOURCES, [[2, 4], [4], [3]]).shape[0] == 3  # padded with 0, but known to be
    for name, symbol in (("go", GO), ("eos", EOS)):
        with says(ValueError, f"target has {name}={symbol} in step 2 of sequence 1"):
            model(SOURCES[:2], [[2, 4], [0, symbol]])


def test_an_answer_may_be_empty():
    model = build()
    labels, mask = model.labels([[2, 4], []])
    assert labels[mask[:, 1], 1].tolist() == [EOS]
    assert np.isfinite(model.loss(SOURCES[:2], [[2, 4], []]).item())


@pytest.mark.parametrize("which", ["source", "target"])
def test_ids_and_lengths_that_do_not_fit(which):
    model = build()
    size = {"source": V_S, "target": V_T}[which]

    def call(ids, lengths=None):
        given = {"source": np.full((2, 2), 2), "target": np.full((2, 2), 2)} | {which: ids}
        return model(*given.values(), **{f"{which}_lengths": lengths})

    with says(
        ValueError,
        f"{which} has the symbol {size} in step 2 of sequence 0, which is not in 0..{size - 1}",
    ):
        call([[2, size], [2, 2]])
    with says(ValueError, f"{which} has the symbol -1 in step 1 of sequence 1"):
        call([[2, 2], [-1, 2]])
    with says(ShapeError, f"{which} has shape (2,), expected (T, N); one sequence is [{which}]"):
        call(np.array([2, 2]))
    with says(ShapeError, f"{which} has shape (1, 2, 2), expected (T, N)"):
        call(np.full((1, 2, 2), 2))
    with says(DtypeError, f"{which} is float64, expected integers"):
        call(np.full((2, 2), 2.0))
    with says(ShapeError, f"{which}_lengths have shape (1,), expected (2,)"):
        call(np.full((2, 2), 2), [1])
    with says(ShapeError, f"{which}_lengths: length 3 of sequence 1 is not in 0..2"):
        call(np.full((2, 2), 2), [1, 3])
    with says(ShapeError, f"{which}_lengths: length -1 of sequence 0 is not in 0..2"):
        call(np.full((2, 2), 2), [-1, 2])
    with says(DtypeError, f"{which}_lengths are integers, got float64"):
        call(np.full((2, 2), 2), [1.0, 2.0])
    with says(ShapeError, "a list of sequences has its own lengths"):
        call([[2], [2]], [1, 1])
    with says(ShapeError, "sources, but", "targets"):
        call([[2, 2]])
    with says(ShapeError, f"EncoderDecoder: {which}: sequence 0 is a single value"):
        call([3, 4, 5])
    with says(ShapeError, f"EncoderDecoder: {which}: 2 sequences without a step"):
        call([[], []])
    with says(ShapeError, f"EncoderDecoder: {which}: 0 sequences without a step"):
        call([])


@reads
def test_ids_and_lengths_may_be_unsigned(attention):
    model = build(attention, teacher_forcing=lambda passes: 0.5)
    (source, lengths), (target, ends) = data.pad(SOURCES), data.pad(TARGETS)
    found = []
    for kind in (np.int64, np.uint64, np.uint8):
        model.rng = np.random.default_rng(0)
        given = {"source_lengths": lengths.astype(kind), "target_lengths": ends.astype(kind)}
        found.append(model(source.astype(kind), target.astype(kind), **given).data)
        answers = model.beam(source.astype(kind), 2, source_lengths=lengths.astype(kind))
        assert [a.tolist() for a in answers] == [a.tolist() for a in model.beam(SOURCES, 2)]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_batches_of_lists_are_weighed_by_their_symbols_as_the_loss_says():
    assert "items=lambda batch: sum(len(target) + 1 for target in batch[1])" in (
        EncoderDecoder.loss.__doc__
    )
    model = build().eval()
    batches = [(SOURCES[:1], TARGETS[:1]), (SOURCES[1:], [[4, 2, 0, 2, 4], [0]])]
    found = train.evaluate(
        model, batches, lambda m, batch, state: (m.loss(*batch), None),
        items=lambda batch: sum(len(target) + 1 for target in batch[1]),
    )  # fmt: skip
    total = sum(model.loss(*batch, reduction="sum").item() for batch in batches)
    np.testing.assert_allclose(found, total / (3 + 6 + 2), rtol=1e-12)


def test_an_alignment_without_attention():
    with says(ValueError, "alignment=True needs attention='bahdanau' or 'luong'"):
        build()(SOURCES, TARGETS, alignment=True)


def test_errors_name_the_place_in_a_model():
    class Translator(nn.Sequential):
        def forward(self, *given):
            return self.layers[0](*given)

    with says(ShapeError, "layers.0: target has shape (1,)"):
        Translator(build())(SOURCES, np.array([2]))


def test_ids_may_be_tensors():
    model = build()
    source, target = np.array([[1], [2]]), np.array([[2], [4]])
    found = model(Tensor(source), Tensor(target))
    np.testing.assert_array_equal(found.data, model(source, target).data)
