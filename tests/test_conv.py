"""Convolution over time against a plain loop and PyTorch; receptive fields counted and measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_rnn import Tensor, nn, no_grad, ops, testing
from tinygrad_rnn.bptt import reads
from tinygrad_rnn.errors import DtypeError, GraphError, ShapeError
from tinygrad_rnn.nn import TDNN, Conv1d

from .test_cells import randomise

PADDINGS = ("valid", "same", "causal")


def by_hand(x, W, b, stride, dilation, padding):
    """Return y (T', N, out), number by number; a step outside the sequence counts as zero."""
    (T, N, D), (k, _, out) = x.shape, W.shape
    span = 1 + (k - 1) * dilation
    first = {"valid": 0, "same": -((span - 1) // 2), "causal": 1 - span}[padding]
    last = T - span if padding == "valid" else first + T - 1
    y = []
    for start in range(first, last + 1, stride):
        row = np.zeros((N, out)) + b
        for j in range(k):
            u = start + j * dilation
            for d in range(D if 0 <= u < T else 0):
                row += np.outer(x[u, :, d], W[j, d])
        y.append(row)
    return np.array(y)


@settings(max_examples=40)
@given(
    T=st.integers(1, 9),
    N=st.integers(1, 3),
    D=st.integers(1, 3),
    out=st.integers(1, 3),
    k=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.sampled_from(PADDINGS),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_convolution_is_its_loop(T, N, D, out, k, stride, dilation, padding, bias, seed):
    conv = Conv1d(D, out, k, stride=stride, dilation=dilation, padding=padding, bias=bias,
                  dtype=np.float64)  # fmt: skip
    randomise(conv, seed)
    T += conv.receptive_field - 1 if padding == "valid" else 0
    x = np.random.default_rng(seed).standard_normal((T, N, D))
    b = conv.b.data if bias else 0
    want = by_hand(x, conv.W.data, b, stride, dilation, padding)
    y = conv(x)
    assert y.shape == want.shape
    np.testing.assert_allclose(y.data, want, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(conv(x[:, 0]).data, want[:, 0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (2, 2, 1), (2, 3, 2)])
def test_gradients(padding, k, stride, dilation):
    conv = Conv1d(2, 3, k, stride=stride, dilation=dilation, padding=padding, dtype=np.float64)
    x = np.random.default_rng(0).standard_normal((5, 2, 2))
    testing.check_module(randomise(conv), x, order=2, blocks="one")
    testing.check_module(randomise(conv), x[:, 0])


def test_gradients_of_a_time_delay_network():
    net = TDNN([2, 3, 2], [2, 3], dilations=[1, 2], strides=[2, 1], dtype=np.float64)
    testing.check_module(randomise(net), np.random.default_rng(0).standard_normal((11, 2, 2)))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("k", "stride", "dilation", "padding"),
    [
        (1, 1, 1, "valid"),
        (2, 3, 1, "valid"),
        (3, 2, 2, "valid"),
        (1, 1, 1, "same"),
        (2, 1, 2, "same"),
        (3, 1, 1, "same"),
    ],
)
def test_values_and_gradients_are_those_of_pytorch(k, stride, dilation, padding):
    torch = pytest.importorskip("torch")
    conv = randomise(Conv1d(2, 3, k, stride=stride, dilation=dilation, padding=padding,
                            dtype=np.float64))  # fmt: skip
    x = np.random.default_rng(0).standard_normal((7, 2, 2))
    ours = Tensor(x, requires_grad=True)
    theirs, W, b = [
        torch.tensor(a, requires_grad=True)
        for a in (x.transpose(1, 2, 0), conv.W.data.transpose(2, 1, 0), conv.b.data)
    ]
    y, want = (
        conv(ours),
        torch.nn.functional.conv1d(theirs, W, b, stride, padding, dilation),
    )
    np.testing.assert_allclose(y.data.transpose(1, 2, 0), want.detach().numpy(), rtol=1e-12)
    u = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(u)
    want.backward(torch.tensor(u.transpose(1, 2, 0)))
    for g, peer in [(ours.grad, theirs), (conv.W.grad, W)]:
        back = peer.grad.numpy().transpose(2, 0, 1) if peer is theirs else peer.grad.numpy().T
        np.testing.assert_allclose(g, back, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(conv.b.grad, b.grad.numpy(), rtol=1e-11)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_stride_takes_every_sth_of_the_outputs(padding):
    x = np.random.default_rng(0).standard_normal((11, 2, 2))
    dense, sparse = [
        randomise(Conv1d(2, 3, 4, stride=s, padding=padding, dtype=np.float64)) for s in (1, 3)
    ]
    np.testing.assert_allclose(sparse(x).data, dense(x).data[::3], rtol=1e-13)


def test_a_causal_convolution_continues_a_sequence_as_if_it_were_whole():
    conv = randomise(Conv1d(2, 3, 3, dilation=2, padding="causal", dtype=np.float64))
    x = np.random.default_rng(0).standard_normal((9, 1, 2))
    whole = conv(x).data
    for t in range(1, 10):  # y(t) does not change when later steps come
        np.testing.assert_allclose(conv(x[:t]).data, whole[:t], rtol=1e-13)
    conv.padding = "valid"
    np.testing.assert_allclose(conv(x).data, whole[4:], rtol=1e-13)


def test_a_network_is_its_convolutions_one_above_the_other():
    net = randomise(TDNN([2, 4, 3], 3, activation="relu", dtype=np.float64))
    x = np.random.default_rng(0).standard_normal((7, 2, 2))
    for conv in net.layers:
        x, before = np.maximum(by_hand(x, conv.W.data, conv.b.data, 1, 1, "valid"), 0), x
    assert (x > 0).any()
    assert len(before) == 5
    np.testing.assert_allclose(net(np.random.default_rng(0).standard_normal((7, 2, 2))).data, x)
    bare = TDNN([2, 4, 3], 3, bias=False, rng=0)
    assert [name for name, _ in bare.named_parameters()] == ["layers.0.W", "layers.1.W"]


def test_parameters_and_first_values():
    conv = Conv1d(20, 30, 5, rng=0)
    assert {name: p.shape for name, p in conv.named_parameters()} == {"W": (5, 20, 30), "b": (30,)}
    assert {p.dtype for p in conv.parameters()} == {np.dtype(np.float32)}
    limit = np.sqrt(6 / (5 * 20 + 5 * 30))  # what an output reads, and what reads an input
    assert 0.99 * limit < np.abs(conv.W.data).max() <= limit
    assert not conv.b.data.any()
    assert conv.summary().splitlines()[1].endswith("3,000  k * in * out")
    np.testing.assert_array_equal(conv.W.data, Conv1d(20, 30, 5, rng=0).W.data)
    one, two = TDNN([3, 3, 3], 2, rng=0).layers
    assert (one.W.data != two.W.data).any()


def test_integers_are_converted_and_float32_stays():
    conv = Conv1d(1, 2, 2, rng=0)
    assert conv([[[1]], [[2]]]).dtype == np.float32
    conv(np.ones((3, 1, 1))).sum().backward()
    assert conv.W.grad.dtype == np.float32


# --- receptive fields: D3 of the lecture ---------------------------------------------------------

STACKS = [
    ([2], [1], [1]),
    ([3], [1], [1]),
    ([3, 3], [1, 1], [1, 1]),
    ([2, 2, 2], [1, 2, 4], [1, 1, 1]),
    ([3, 2], [1, 3], [2, 1]),
    ([2, 3, 2], [2, 1, 1], [3, 2, 1]),
]


@pytest.mark.parametrize(("kernels", "dilations", "strides"), STACKS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_field_of_a_stack_is_counted_and_measured(kernels, dilations, strides, activation):
    net = TDNN([1] + [4] * len(kernels), kernels, dilations=dilations, strides=strides,
               activation=activation, rng=0)  # fmt: skip
    counted = 1 + sum(
        (k - 1) * d * int(np.prod(strides[:layer]))
        for layer, (k, d) in enumerate(zip(kernels, dilations, strict=True))
    )
    assert net.receptive_field == counted
    seen = reads(net, np.random.default_rng(0).standard_normal((counted + 7, 16, 1)))
    step = int(np.prod(strides))
    for t, row in enumerate(seen):
        u = np.flatnonzero(row)
        assert u[0] == t * step
        assert u[-1] == t * step + counted - 1


def test_the_field_of_one_convolution_of_width_k_is_k():
    for k in (1, 2, 5):
        conv = Conv1d(1, 1, k, rng=0)
        assert conv.receptive_field == k
        want = [[t <= u < t + k for u in range(8)] for t in range(8 - k + 1)]
        np.testing.assert_array_equal(reads(conv, np.ones((8, 1))), want)
    dilated = reads(Conv1d(1, 1, 3, dilation=2, rng=0), np.ones((6, 1)))
    np.testing.assert_array_equal(dilated[0], [1, 0, 1, 0, 1, 0])


def test_padding_moves_the_field():
    k3 = {p: reads(Conv1d(1, 1, 3, padding=p, rng=0), np.ones((5, 1))) for p in PADDINGS}
    np.testing.assert_array_equal(k3["same"], abs(np.subtract.outer(range(5), range(5))) <= 1)
    np.testing.assert_array_equal(k3["causal"][2:], k3["valid"])
    np.testing.assert_array_equal(k3["causal"], np.tril(k3["causal"]))


def test_the_field_of_a_recurrent_layer_is_t():
    lower = np.tril(np.ones((6, 6), bool))
    x = np.random.default_rng(0).standard_normal((6, 1, 2))
    for layer in (nn.RNN(2, 3, rng=0), nn.LSTM(2, 3, rng=0), nn.GRU(2, 3, num_layers=2, rng=0)):
        np.testing.assert_array_equal(reads(layer, x), lower)
    both = nn.RNN(2, 3, bidirectional=True, rng=0)
    np.testing.assert_array_equal(reads(both, x), np.ones((6, 6)))


def test_a_path_counts_however_small_its_slope():
    layer = nn.RNN(1, 1, activation="identity", rng=0)
    layer.L0["fwd"].W_h.data[:] = 1e-6  # after 60 steps the slope is 1e-354
    assert reads(layer, np.ones((60, 1, 1)))[-1].all()
    layer.L0["fwd"].b.data[:] = 800.0
    layer.L0["fwd"].activation = ops.tanh
    assert reads(layer, np.ones((5, 1, 1)))[-1].all()


def test_a_unit_that_is_off_passes_nothing_and_another_sequence_may_pass():
    x = np.array([[[-1.0], [1.0]]])
    conv = TDNN([1, 1], 1, activation="relu", rng=0)
    conv.layers[0].W.data[:] = 1
    assert not reads(conv, x[:, :1]).any()
    assert reads(conv, x).all()


def test_reads_takes_any_function_of_a_sequence():
    assert not reads(lambda x: Tensor(np.ones((2, 1))), np.ones((3, 1))).any()
    np.testing.assert_array_equal(reads(lambda x: (x[1:] * x[:-1], None), [[1.0], [2], [3]]),
                                  [[1, 1, 0], [0, 1, 1]])  # fmt: skip
    backwards = reads(lambda x: x[::-1], np.ones((3, 1), np.float32))
    np.testing.assert_array_equal(backwards, np.eye(3)[::-1])


def test_reads_records_for_itself_inside_no_grad():
    conv, x = Conv1d(1, 1, 2, rng=0), np.ones((4, 1, 1))
    with no_grad():
        np.testing.assert_array_equal(reads(conv, x), np.eye(3, 4) + np.eye(3, 4, 1))


def test_reads_gives_a_function_float32_or_a_tensor_in_its_own_dtype():
    x = np.ones((4, 1, 1))
    for dtype, a in ((np.float32, x), (np.float32, x.astype(int)), (np.float64, Tensor(x))):
        layer = nn.RNN(1, 2, dtype=dtype, rng=0)
        np.testing.assert_array_equal(reads(lambda v, f=layer: f(v)[0], a), np.tri(4))
        np.testing.assert_array_equal(reads(layer, a), np.tri(4))


def test_reads_of_a_batch_first_layer_is_refused_unless_it_is_one_sequence():
    layer = nn.RNN(1, 2, batch_first=True, rng=0)
    for f, name in ((layer, "RNN"), (nn.Readout(layer, 1, rng=0), "layer")):
        with pytest.raises(ShapeError, match=f"reads: {name} has batch_first=True, so the first"):
            reads(f, np.ones((4, 4, 1)))
    np.testing.assert_array_equal(reads(layer, np.ones((4, 1))), np.tri(4))
    swap = (1, 0, 2)
    seen = reads(lambda x: layer(x.transpose(swap))[0].transpose(swap), np.ones((4, 2, 1)))
    np.testing.assert_array_equal(seen, np.tri(4))


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "kernel_size", "stride",
                                  "dilation"])  # fmt: skip
def test_a_size_below_1_is_refused(name):
    sizes = {"in_channels": 2, "out_channels": 2, "kernel_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"Conv1d: {name}=0 must be a whole number, 1 or more"):
        Conv1d(**sizes)


@pytest.mark.parametrize("size", [2.5, "3", True, None])
def test_a_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(ValueError, match=f"Conv1d: kernel_size={size!r} must be a whole number"):
        Conv1d(2, 3, size)
    with pytest.raises(ValueError, match=f"Conv1d: kernel_size={size!r} must be a whole number"):
        TDNN([2, 3], size)
    with pytest.raises(ValueError, match=f"Conv1d: stride={size!r} must be a whole number"):
        Conv1d(2, 3, 2, stride=size)


def test_an_unknown_padding_or_dtype_is_refused():
    with pytest.raises(ValueError, match="padding is one of valid, same, causal; got 'full'"):
        Conv1d(1, 1, 3, padding="full")
    with pytest.raises(DtypeError, match="Conv1d: parameters need a floating type"):
        Conv1d(1, 1, 3, dtype=int)


@pytest.mark.parametrize("layer", [Conv1d(2, 1, 3, rng=0), TDNN([2, 1], 3, rng=0)])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 1, 3), r"x has shape \(5, 1, 3\), expected \(T, N, 2\) or \(T, 2\)"),
        ((2,), r"x has shape \(2,\), expected \(T, N, 2\)"),
        ((1, 5, 1, 2), r"x has shape \(1, 5, 1, 2\), expected"),
        ((0, 1, 2), r"x has shape \(0, 1, 2\): there is no step or no sequence"),
        ((5, 0, 2), r"x has shape \(5, 0, 2\): there is no step or no sequence"),
        ((2, 1, 2), "T=2 steps are fewer than the 3 that an output reads; padding='causal'"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(layer, shape, words):
    with pytest.raises(ShapeError, match=f"{type(layer).__name__}: {words}"):
        layer(np.ones(shape))
    with pytest.raises(ShapeError, match=f"{type(layer).__name__}: x has parts of unequal length"):
        layer([[1.0, 2.0], [3.0]])
    with pytest.raises(DtypeError, match=f"{type(layer).__name__}: x is <U1, not numbers"):
        layer([["a", "b"]])


def test_numbers_of_numpy_are_numbers():
    net = TDNN(np.array([2, 3]), np.int64(2), dilations=np.array([2]))
    assert net.receptive_field == 3


def test_a_network_counts_its_whole_field_before_it_refuses():
    with pytest.raises(ShapeError, match="TDNN: T=4 steps are fewer than the 5 that"):
        TDNN([1, 2, 1], 3)(np.ones((4, 1, 1)))
    assert TDNN([1, 2, 1], 3)(np.ones((5, 1, 1))).shape == (1, 1, 1)


def test_settings_of_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="TDNN: kernel_sizes has 1 entries, expected 2"):
        TDNN([1, 2, 1], [3])
    with pytest.raises(ValueError, match="TDNN: dilations has 3 entries, expected 1"):
        TDNN([1, 2], 3, dilations=[1, 2, 4])
    with pytest.raises(ValueError, match="TDNN: strides has 0 entries, expected 1"):
        TDNN([1, 2], 3, strides=[])
    with pytest.raises(ValueError, match="TDNN: sizes=5 must be D and the features of one"):
        TDNN(5, 3)
    with pytest.raises(ValueError, match=r"TDNN: sizes=\[1\] must be D and the features of one"):
        TDNN([1], 3)
    with pytest.raises(ValueError, match="TDNN: activation is one of tanh, relu, identity or a"):
        TDNN([1, 2], 3, activation="swish")


def test_reads_says_what_it_cannot_read():
    with pytest.raises(TypeError, match="reads: f returned ndarray, expected a Tensor"):
        reads(lambda x: x.numpy(), np.ones((3, 1)))
    with pytest.raises(ShapeError, match="reads: f returned a scalar"):
        reads(lambda x: x.sum(), np.ones((3, 1)))
    with pytest.raises(ShapeError, match="reads: x is a scalar"):
        reads(lambda x: x, 3.0)


def test_reads_of_a_result_says_what_was_not_recorded():
    a, conv = np.ones((3, 1, 1), np.float32), Conv1d(1, 1, 2, rng=0)
    with pytest.raises(TypeError, match="reads: x is a ndarray: with y, pass the Tensor x"):
        reads(conv(a), a)
    x = Tensor(a)
    with pytest.raises(GraphError, match="reads: x requires no gradient"):
        reads(conv(x), x)
    x = Tensor(a, requires_grad=True)
    with no_grad():
        y = conv(x)
    with pytest.raises(GraphError, match="reads: y was not recorded"):
        reads(y, x)
    assert reads(conv(x), x).sum() == 4
