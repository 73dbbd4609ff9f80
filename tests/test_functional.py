"""Functions composed of primitives, against NumPy and against what they promise."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Tensor, functional, grad, ops
from tinygrad_rnn.functional import cross_entropy, mse_loss
from tinygrad_rnn.testing import check_grad

from .test_cells import check_gradients, weighted

seeds = st.integers(0, 2**32 - 1)


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def softmax(o):
    e = np.exp(o - o.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- reductions, softmax, relu ---


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (-1, 1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_mean_and_var_are_numpys(axis, keepdims):
    x = leaf(2, 3, 4)
    for ours, theirs in ((functional.mean, np.mean), (functional.var, np.var)):
        want = theirs(x.data, axis=axis, keepdims=keepdims)
        y = ours(x, axis, keepdims)
        assert y.shape == want.shape
        np.testing.assert_allclose(y.data, want, rtol=1e-13)
        np.testing.assert_allclose(ours(x.data, axis, keepdims), want, rtol=1e-13)
        check_gradients(lambda f=ours: weighted(f(x, axis, keepdims)), {"x": x})


@given(seed=seeds, axis=st.sampled_from([0, 1, -1]), shift=st.floats(-1e4, 1e4))
def test_softmax_and_logsumexp_are_numpys_and_stable(seed, axis, shift):
    x = leaf(3, 4, seed=seed)
    moved = np.moveaxis(x.data, axis, -1)
    want = np.moveaxis(softmax(moved), -1, axis)
    y = functional.softmax(x, axis)
    np.testing.assert_allclose(y.data, want, rtol=1e-12)
    np.testing.assert_allclose(y.data.sum(axis), 1, rtol=1e-14)
    np.testing.assert_allclose(functional.softmax(x.data + shift, axis), want, rtol=1e-10)
    total = functional.logsumexp(x + shift, axis)
    np.testing.assert_allclose(total.data, np.log(np.exp(x.data).sum(axis)) + shift, rtol=1e-10)
    assert functional.logsumexp(x, axis, keepdims=True).ndim == 2
    check_gradients(lambda: weighted(functional.softmax(x, axis)), {"x": x})


def test_softmax_and_logsumexp_overflow_nowhere():
    for scale in (1e4, -1e4, 1e300):
        o = np.array([scale, 0.0])
        np.testing.assert_array_equal(functional.softmax(o), [1, 0] if scale > 0 else [0, 1])
        assert functional.logsumexp(o) == max(scale, 0)
        assert functional.log_softmax(o).max() == 0


def test_the_gradient_of_logsumexp_is_softmax():
    x = leaf(2, 5)
    np.testing.assert_allclose(
        grad(functional.logsumexp(x).sum(), x), softmax(x.data), rtol=1e-12, atol=1e-15
    )


def test_relu_and_its_gradient():
    x = Tensor([-2.0, -0.0, 0.0, 3.0], requires_grad=True)
    y = functional.relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, 0, 3])
    np.testing.assert_array_equal(grad(y.sum(), x), [0, 0, 0, 1])


# --- split, stack, unbind ---


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split_and_concat_undo_each_other(axis):
    x = leaf(4, 6)
    parts = functional.split(x, 2, axis)
    for part, want in zip(parts, np.split(x.data, 2, axis), strict=True):
        np.testing.assert_array_equal(part.data, want)
    np.testing.assert_array_equal(ops.concat(*parts, axis=axis).data, x.data)
    weights = [np.full(p.shape, k + 1.0) for k, p in enumerate(parts)]
    g = grad(sum((p * w).sum() for p, w in zip(parts, weights, strict=True)), x)
    np.testing.assert_array_equal(g, np.concatenate(weights, axis))
    g = grad(parts[1].sum(), x)  # one part alone: zero elsewhere
    np.testing.assert_array_equal(g, np.concatenate([0 * weights[0], weights[0]], axis))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stack_and_unbind_undo_each_other(axis):
    x = leaf(3, 4)
    parts = functional.unbind(x, axis)
    assert len(parts) == x.shape[axis]
    again = functional.stack(parts, axis)
    np.testing.assert_array_equal(again.data, x.data)
    np.testing.assert_array_equal(parts[1].data, np.take(x.data, 1, axis))
    w = np.random.default_rng(1).standard_normal(x.shape)
    np.testing.assert_array_equal(grad((again * w).sum(), x), w)
    assert all(type(p) is np.ndarray for p in functional.unbind(x.data, axis))


# --- dropout, layer_norm, embedding ---


def test_dropout_zeroes_with_probability_p_and_keeps_the_mean():
    x = np.ones((400, 500))
    y = functional.dropout(x, 0.3, rng=0)
    np.testing.assert_allclose((y == 0).mean(), 0.3, atol=5e-3)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-15)
    np.testing.assert_allclose(y.mean(), 1, atol=5e-3)


def test_dropout_is_the_identity_without_training_or_at_0_and_zero_at_1():
    x = leaf(3, 4)
    assert functional.dropout(x, 0.5, training=False) is x
    assert functional.dropout(x, 0.0) is x
    assert not functional.dropout(x, 1.0).data.any()


def test_dropout_uses_one_mask_forward_and_backward_and_is_reproducible():
    x = leaf(50)
    y = functional.dropout(x, 0.5, rng=3)
    np.testing.assert_array_equal(grad(y.sum(), x), np.where(y.data == 0, 0, 2))
    np.testing.assert_array_equal(y.data, functional.dropout(x, 0.5, rng=3).data)
    assert (functional.dropout(x, 0.5).data != functional.dropout(x, 0.5).data).any()


def test_dropout_of_integers_and_of_float32():
    np.testing.assert_allclose(np.unique(functional.dropout(np.full(99, 7), 0.3, rng=0)), [0, 10])
    assert functional.dropout(np.ones(3, np.float32), 0.5).dtype == np.float32


@given(seed=seeds)
def test_layer_norm_is_its_equation(seed):
    x, gain, bias = leaf(2, 3, 5, seed=seed), leaf(5, seed=seed + 1), leaf(5, seed=seed + 2)

    def run():
        return functional.layer_norm(x, gain, bias, 1e-3)

    d = x.data - x.data.mean(-1, keepdims=True)
    want = d / np.sqrt(x.data.var(-1, keepdims=True) + 1e-3) * gain.data + bias.data
    np.testing.assert_allclose(run().data, want, rtol=1e-11, atol=1e-13)
    plain = functional.layer_norm(x).data
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-13)
    check_gradients(lambda: weighted(run()), {"x": x, "gain": gain, "bias": bias})


def test_the_gradient_of_an_embedding_adds_where_an_id_repeats():
    table, ids = leaf(5, 2), np.array([[1, 1], [3, 1]])
    y = functional.embedding(ids, table)
    np.testing.assert_array_equal(y.data, table.data[ids])
    w = np.random.default_rng(0).standard_normal(y.shape)
    want = np.zeros((5, 2))
    np.add.at(want, ids, w)
    np.testing.assert_array_equal(grad((y * w).sum(), table), want)
    twice = (y * w).sum() + (functional.embedding([3], table) * 10).sum()
    want[3] += 10
    np.testing.assert_allclose(grad(twice, table), want, rtol=1e-14)


def test_one_hot_is_rows_of_the_identity():
    ids = [[2, 0], [1, 1]]
    y = functional.one_hot(ids, 4)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, np.eye(4)[ids])
    assert functional.one_hot(0, 3, np.float64).tolist() == [1, 0, 0]


def test_mse_loss():
    p, t = leaf(3, 2), np.ones((3, 2), np.float32)  # plain targets take the type
    want = (p.data - 1) ** 2
    np.testing.assert_allclose(functional.mse_loss(p, t).data, want.mean(), rtol=1e-14)
    np.testing.assert_allclose(
        functional.mse_loss(p, t, reduction="sum").data, want.sum(), rtol=1e-14
    )
    np.testing.assert_allclose(functional.mse_loss(p, t, reduction="none").data, want, rtol=1e-14)
    np.testing.assert_allclose(grad(functional.mse_loss(p, t), p), 2 * (p.data - 1) / 6)


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_a_mask_of_leading_axes_says_what_a_squared_error_counts(axes):
    p, t = leaf(3, 2, 4), leaf(3, 2, 4, seed=1)
    mask = np.random.default_rng(2).random((3, 2, 4)[:axes]) < 0.5
    if axes:
        mask.flat[:2] = True, False
    counts = np.broadcast_to(mask.reshape(mask.shape + (1,) * (3 - axes)), (3, 2, 4))
    n, each = counts.sum(), (p.data - t.data) ** 2 * counts
    for reduction, want, weight in (
        ("none", each, 1), ("sum", each.sum(), 1), ("mean", each.sum() / max(n, 1), max(n, 1))
    ):  # fmt: skip
        loss = mse_loss(p, t, reduction=reduction, mask=mask)
        np.testing.assert_allclose(loss.data, want, rtol=1e-14)
        g = 2 * (p.data - t.data) * counts / weight
        found = grad(loss, [p, t], np.ones(loss.shape))
        np.testing.assert_allclose(found, [g, -g], rtol=1e-14)
    check_grad(lambda p, t: mse_loss(p, t, mask=mask), p.data, t.data, order=2)


def test_what_a_mask_leaves_out_may_be_anything():
    """NaN and infinity in prediction or target: neither the loss nor a gradient sees them."""
    mask = np.array([[True, False], [False, True], [True, True]])
    clean, clean_t = leaf(3, 2, 2), leaf(3, 2, 2, seed=1)
    want = mse_loss(clean, clean_t, mask=mask)
    for bad in (np.nan, np.inf, 1e300):
        p, t = [Tensor(a.data.copy(), requires_grad=True) for a in (clean, clean_t)]
        p.data[0, 1], t.data[0, 1, 0], t.data[1, 0] = bad, -bad, bad
        loss = mse_loss(p, t, mask=mask)
        assert loss.item() == want.item()
        np.testing.assert_array_equal(grad(loss, [p, t]), grad(want, [clean, clean_t]))
        assert float(mse_loss(p.data, t.data, mask=mask)) == want.item()


def test_a_mask_keeps_the_type_and_counts_all_where_it_is_all_true():
    p, t = Tensor(np.ones((2, 3), np.float32), requires_grad=True), np.zeros((2, 3))
    loss = mse_loss(p, t, mask=np.ones(2, bool))
    assert loss.dtype == np.float32
    assert loss.item() == mse_loss(p, t).item() == 1
    assert mse_loss(np.float32([1, 3]), [0.0, 0.0], mask=[1, 0]).dtype == np.float32


# --- cross entropy ---


@given(seed=seeds, shape=st.sampled_from([(4,), (3, 4), (2, 3, 1), (2, 3, 5)]))
def test_cross_entropy_of_a_distribution_is_its_equation_and_its_gradient(seed, shape):
    rng = np.random.default_rng(seed)
    o, d = leaf(*shape, seed=seed), rng.random(shape)  # d need not sum to 1
    y = softmax(o.data)
    loss = cross_entropy(o, d)
    np.testing.assert_allclose(loss.data, -(d * np.log(y)).sum(), rtol=1e-11, atol=1e-14)
    want = y * d.sum(-1, keepdims=True) - d
    np.testing.assert_allclose(grad(loss, o), want, rtol=1e-10, atol=1e-13)
    d /= d.sum(-1, keepdims=True)
    np.testing.assert_allclose(grad(cross_entropy(o, d), o), y - d, rtol=1e-9, atol=1e-13)


def test_cross_entropy_passes_a_gradient_to_targets_too():
    o, d = leaf(2, 3), Tensor(np.full((2, 3), 1 / 3), requires_grad=True)
    np.testing.assert_allclose(grad(cross_entropy(o, d), d), -np.log(softmax(o.data)), rtol=1e-12)


@given(seed=seeds)
def test_class_numbers_are_one_hot_distributions(seed):
    rng = np.random.default_rng(seed)
    o, ids = leaf(3, 2, 5, seed=seed), rng.integers(0, 5, (3, 2))
    by_number = cross_entropy(o, ids)
    for dtype in (np.float64, np.float32, int, bool):
        by_row = cross_entropy(o, functional.one_hot(ids, 5, dtype))
        np.testing.assert_allclose(by_number.data, by_row.data, rtol=1e-14)
    np.testing.assert_allclose(
        grad(by_number, o), softmax(o.data) - np.eye(5)[ids], rtol=1e-9, atol=1e-14
    )


def test_the_sum_is_the_default_and_the_sum_of_the_steps():
    o, ids = leaf(4, 2, 3), np.ones((4, 2), int)
    each = cross_entropy(o, ids, reduction="none")
    assert each.shape == (4, 2)
    np.testing.assert_allclose(cross_entropy(o, ids).data, each.data.sum(), rtol=1e-14)
    np.testing.assert_allclose(
        cross_entropy(o, ids, reduction="mean").data, each.data.mean(), rtol=1e-14
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_stable_for_logits_of_1e4(dtype):
    o = Tensor(np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype), requires_grad=True)
    loss = cross_entropy(o, [0, 0])
    assert loss.item() == 2e4
    np.testing.assert_array_equal(grad(loss, o), [[0, 0, 0], [-1, 1, 0]])


def test_0_log_0_is_0_in_value_and_gradient():
    o = Tensor([[0.0, -np.inf], [0.0, -1e300]], requires_grad=True)
    loss = cross_entropy(o, [[1.0, 0.0], [1.0, 0.0]])
    assert loss.item() == 0
    np.testing.assert_array_equal(grad(loss, o), np.zeros((2, 2)))


def test_a_mask_and_an_ignored_class_leave_steps_out():
    o, ids = leaf(4, 3), np.array([0, 2, 1, 1])
    mask = np.array([True, False, True, False])
    each = cross_entropy(o, ids, reduction="none").data
    np.testing.assert_allclose(
        cross_entropy(o, ids, mask=mask, reduction="none").data, each * mask, rtol=1e-15
    )
    masked = cross_entropy(o, ids, mask=mask)
    np.testing.assert_allclose(masked.data, each[mask].sum(), rtol=1e-14)
    assert not grad(masked, o)[~mask].any()
    mean = cross_entropy(o, ids, mask=mask, reduction="mean")
    np.testing.assert_allclose(mean.data, each[mask].mean(), rtol=1e-14)
    ignored = cross_entropy(o, np.where(mask, ids, -100), ignore_index=-100, reduction="mean")
    np.testing.assert_allclose(ignored.data, mean.data, rtol=1e-15)
    both = cross_entropy(o, [0, -1, 1, 1], ignore_index=-1, mask=[1, 1, 1, 0], reduction="mean")
    np.testing.assert_allclose(both.data, mean.data, rtol=1e-15)
    rows = functional.one_hot(ids, 3)
    np.testing.assert_allclose(cross_entropy(o, rows, mask=mask).data, masked.data, rtol=1e-14)


def test_a_masked_target_may_be_anything():
    o = leaf(2, 3)
    loss = cross_entropy(o, [0, 99], mask=[True, False])
    np.testing.assert_allclose(loss.data, cross_entropy(o[:1], [0]).data, rtol=1e-15)
    assert not grad(loss, o)[1].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [cross_entropy, mse_loss])
def test_no_step_that_counts_gives_0_and_no_gradient(loss, reduction):
    for bad in (1.0, np.nan):
        x = Tensor(np.full((4, 2, 3), bad), requires_grad=True)
        target = np.zeros((4, 2), int) if loss is cross_entropy else np.full((4, 2, 3), bad)
        y = loss(x, target, reduction=reduction, mask=np.zeros((4, 2), bool))
        assert not y.data.any()
        g = grad(y, x, np.ones(y.shape))
        np.testing.assert_array_equal(g, np.zeros((4, 2, 3)))


def test_the_mean_over_no_step_is_0():
    o = leaf(2, 3)
    loss = cross_entropy(o, [7, 7], ignore_index=7, reduction="mean")
    assert loss.item() == 0
    assert not grad(loss, o).any()


def test_probabilities_in_the_place_of_logits_are_warned_of():
    y = softmax(np.random.default_rng(0).standard_normal((4, 3)))
    with pytest.warns(UserWarning, match="look like probabilities"):
        cross_entropy(Tensor(y), [0, 1, 2, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_entropy(y * 2, [0, 1, 2, 0])  # rows do not sum to 1
        cross_entropy(np.log(y), [0, 1, 2, 0])
        cross_entropy(np.ones((2, 1)), [0, 0])  # V = 1
        cross_entropy(np.concatenate([y, [[2.0, -1.0, 0.0]]]), [0, 1, 2, 0, 0])


def test_functions_on_arrays_and_lists_return_arrays():
    assert isinstance(cross_entropy([[0.0, 2.0]], [1]), np.ndarray | np.generic)
    for f in (functional.softmax, functional.relu, functional.layer_norm):
        assert type(f(np.ones((2, 3)))) is np.ndarray


@pytest.mark.torch
def test_against_pytorch():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    o, ids = leaf(6, 5), np.array([0, 4, 2, 2, 1, 3])
    p = torch.tensor(o.data, requires_grad=True)
    y, w = softmax(o.data), np.random.default_rng(1).standard_normal((6, 5))
    cases = [
        (
            cross_entropy(o, ids, reduction="mean", ignore_index=2),
            F.cross_entropy(p, torch.tensor(ids), ignore_index=2),
        ),
        (cross_entropy(o, y), F.cross_entropy(p, torch.tensor(y), reduction="sum")),
        ((functional.layer_norm(o) * w).sum(), (F.layer_norm(p, (5,)) * torch.tensor(w)).sum()),
        (functional.logsumexp(o).sum(), torch.logsumexp(p, -1).sum()),
        (functional.mse_loss(o, w), F.mse_loss(p, torch.tensor(w))),
    ]
    for ours, theirs in cases:
        np.testing.assert_allclose(ours.item(), theirs.item(), rtol=1e-12)
        (want,) = torch.autograd.grad(theirs, p)
        np.testing.assert_allclose(grad(ours, o), want.numpy(), rtol=1e-9, atol=1e-13)
