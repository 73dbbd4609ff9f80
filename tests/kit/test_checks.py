"""The checks: what they pass, what they find, what they say of a bad function or reference."""

import numpy as np
import pytest

from tinygrad_rnn import Parameter, Tensor, nn, no_grad, ops
from tinygrad_rnn.op import OPS, primitive
from tinygrad_rnn.testing import (
    GradientError,
    RNNConfig,
    Verdict,
    check_grad,
    check_module,
    check_taylor,
    derivative,
    from_function,
    from_module,
    strategies,
)
from tinygrad_rnn.testing.report import LISTENERS

CELLS = [nn.RNN, nn.LSTM, nn.GRU]


def x_of(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def planted():
    """Replace the rules of an op for one test: planted(op, rule, ...)."""
    before = {op: (op.rules, op.rule_all, op.collectors) for op in OPS.values()}

    def plant(op, *rules):
        op.rules = rules

    yield plant
    for op, (rules, rule_all, collectors) in before.items():
        op.rules, op.rule_all, op.collectors = rules, rule_all, collectors


def error_of(f, *args, **kwargs):
    check = check_module if isinstance(f, nn.Recurrent) else check_grad
    with pytest.raises(GradientError) as found:
        check(f, *args, **kwargs)
    return found.value


# --- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layers_are_right_in_every_block(cell, dtype):
    cfg = RNNConfig(cell, T=4, N=3, D=2, H=3, layers=2, bidirectional=True, dtype=dtype)
    layer = cfg.make()
    before = layer.state_dict()
    report = check_module(layer, cfg.x(), state=cfg.initial(layer), lengths=[4, 2, 0])
    assert report.verdict is Verdict.RIGHT
    assert report.method == "complex step"
    assert report.worst.ratio < 1
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[cell]
    labels = {f.input for f in report.findings}
    assert {"x(t=1)", "x(t=4)", "h0[0]", "h0[3]"} <= labels
    assert sum("L0.fwd.W_h" in name for name in labels) == gates
    assert {f.output for f in report.findings} >= {"y(t=1)", "y(t=4)", "h_n", "all outputs"}
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert all(p.grad is None for p in layer.parameters())


def test_a_gradient_of_1e_minus_38_is_compared_as_exactly_as_any_other():
    cfg = RNNConfig(nn.RNN, T=64, H=2)
    layer = cfg.make()
    report = check_module(layer, cfg.x(), state=cfg.initial(layer))
    far = [f for f in report.findings if f.output == "h_n" and f.input == "x(t=1)"]
    assert 0 < far[0].scale < 1e-15
    assert far[0].ratio < 1


def test_second_order_looks_at_the_gradient_by_inputs_and_by_cotangents():
    report = check_grad(lambda x, W: ops.tanh(x @ W), x_of(2, 3), x_of(3, 2), order=2)
    assert {"cotangent", "x", "W"} <= {f.input for f in report.findings}
    assert {"gradient of x", "gradient of W"} <= {f.output for f in report.findings}


def test_a_foreign_object_with_two_methods_is_checked():
    class Square:
        def forward(self, x):
            return (x * x,)

        def vjp(self, arrays, cotangents):
            return (cotangents[0] * 2 * arrays[0],)

    assert check_grad(Square(), x_of(3)).verdict is Verdict.RIGHT
    wrong = Square()
    wrong.vjp = lambda arrays, cotangents: (cotangents[0] * arrays[0],)
    message = str(error_of(wrong, x_of(3)))
    assert "ratio 0.5 in all 3 entries" in message
    assert "cannot be read" in message


@pytest.mark.parametrize("method", ["complex", "ridders", "exact"])
def test_each_method_passes_what_is_right_and_finds_what_is_not(method, planted):
    f = lambda x: ops.sum(x * 3.0, axis=0)  # noqa: E731
    report = check_grad(f, x_of(2, 3), method=method)
    assert report.method.split()[0] == method
    planted(ops.sum, lambda g, y, x, axis=None, keepdims=False: ops.broadcast(2 * g, shape=x.shape))
    assert error_of(f, x_of(2, 3), method=method).verdict is Verdict.WRONG


def test_blocks_and_outputs_are_chosen():
    f = lambda x, y: (x * y, x + y)  # noqa: E731
    assert len(check_grad(f, x_of(3), x_of(3), blocks="one").findings) == 3
    assert len(check_grad(f, x_of(3), x_of(3), blocks="full", outputs="all").findings) == 6
    assert len(check_grad(f, x_of(3), x_of(3), wrt=1, outputs="each").findings) == 2
    assert len(check_grad(f, x_of(3), x_of(3), n_dirs=3, outputs="all").findings) == 6
    report = check_grad(f, x_of(9, 2, 2), x_of(9, 2, 2), max_evals=4, outputs="all")
    assert len(report.findings) == 2


def test_float32_is_compared_in_double_precision_at_the_same_point():
    x = x_of(3, 4).astype(np.float32)
    report = check_grad(lambda x: ops.log_softmax(x), x)
    assert 1e-10 < report.worst.tolerance < 1e-3
    assert check_grad(lambda x: ops.exp(x), x_of(3), dtype="float32").verdict is Verdict.RIGHT


def test_an_ill_conditioned_gradient_is_no_false_alarm():
    """Where a float32 sigmoid saturates, 1 - y has few digits left: the tape itself says so."""
    report = check_grad(ops.sigmoid, np.array([12.0], np.float32))
    assert report.findings[0].note == "ill-conditioned"
    assert report.verdict is Verdict.RIGHT


# --- kinks ----------------------------------------------------------------------------------------


def test_a_subgradient_is_right_at_a_kink_and_nothing_else_is(planted):
    tied = [np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 2.0])]
    assert check_grad(ops.maximum, *tied).verdict is Verdict.RIGHT
    assert check_grad(ops.abs, [0.0, 2.0]).verdict is Verdict.RIGHT
    where = ops.where
    for share in (1.0, 0.0, 0.75):  # each side alone lies in its interval; together they do not
        planted(
            ops.maximum,
            lambda g, z, x, y, s=share: where(x > y, g, where(x == y, g * s, 0.0)),
            lambda g, z, x, y, s=share: where(x < y, g, where(x == y, g * s, 0.0)),
        )
        assert "subgradient" in str(error_of(ops.maximum, *tied))


def test_a_point_without_derivative_can_be_refused():
    error = error_of(ops.abs, [0.0, 2.0], kinks="error")
    assert error.verdict is Verdict.UNRELIABLE
    assert "not differentiable at this point" in str(error)
    assert check_grad(ops.abs, [1.0, 2.0], kinks="error").verdict is Verdict.RIGHT


def test_a_kink_nearby_is_none():
    x = np.array([1e-4, -1e-4, 1.0])
    assert check_grad(lambda x: ops.maximum(x, 0.0), x, kinks="error").verdict is Verdict.RIGHT


# --- what is wrong: the message ------------------------------------------------------------------


def test_the_message_names_the_block_the_numbers_the_guess_and_the_rule(planted):
    planted(ops.sigmoid, lambda g, y, x: 2 * g * (y - y * y))
    cfg = RNNConfig(nn.LSTM, T=2, N=1, D=1, H=2)
    message = str(error_of(cfg.make(), cfg.x(), seed=7))
    assert "backward of LSTM is wrong  [not flaky: 3 of 3 seeds]" in message
    assert "ratio 2 in all" in message
    assert "rule       sigmoid  kit/test_checks.py:" in message
    assert "L0.fwd, step t=" in message
    assert "seed=7" in message
    got, want = (
        float(line.split()[1])
        for line in message.splitlines()
        if line.strip().startswith(("backward ", "reference ")) and "of" not in line
    )
    assert got == pytest.approx(2 * want)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda g, y, x: -g * (1 - y * y), "the sign is wrong"),
        (lambda g, y, x: 0 * g, "backward gives 0 everywhere"),
        (lambda g, y, x: (g * (1 - y * y)).T, "transposed"),
        (lambda g, y, x: (g * (1 - y * y))[::-1], "reverse order along axis 0"),
        (lambda g, y, x: g * (1 - y * y) / 3, "1/N"),
        (lambda g, y, x: g * (1 - y * y) * (1 + 2e-6), "a small relative error"),
        (lambda g, y, x: g * (1 - y * y) * (x > 0), "entries are 0 that should not be"),
        (lambda g, y, x: g * (1 - y), "by no constant factor"),
    ],
)
def test_the_message_says_what_it_looks_like(rule, words, planted):
    planted(ops.tanh, rule)
    message = str(error_of(ops.tanh, x_of(3, 3)))
    assert words in message
    assert "tanh  kit/test_checks.py:" in message


def test_a_cut_graph_is_named_with_its_step():
    class Cut(nn.LSTMCell):
        def step(self, x, state):
            h, c = state
            self.count = getattr(self, "count", 0) + 1
            return super().step(x, (h.detach() if self.count % 6 == 4 else h, c))

    cfg = RNNConfig(Cut, T=6, D=2, H=2)
    message = str(error_of(cfg.make(), cfg.x()))
    assert "the graph is cut at h (1, 2) in L0.fwd, step t=4 of 6" in message


def test_a_rule_that_raises_is_an_error_of_the_gradient(planted):
    planted(ops.tanh, lambda g, y, x: g @ np.ones((7, 7)))
    error = error_of(ops.tanh, x_of(3))
    assert error.verdict is Verdict.WRONG
    assert "backward of tanh raised ValueError" in str(error)


def test_a_rule_of_the_wrong_shape_or_dtype_is_said_so(planted):
    @primitive("()->()", "3 x")
    def triple(x):
        return 3 * x

    try:
        triple.vjp(lambda g, y, x: g.sum() * 3)
        assert "shape" in str(error_of(triple, x_of(2, 3)))
    finally:
        del OPS["triple"]

    class Wrong:
        def forward(self, x):
            return (x * x,)

        def vjp(self, arrays, cotangents):
            return self.gradients(2 * cotangents[0] * arrays[0])

    wrong = Wrong()
    wrong.gradients = lambda g: (g, g)
    assert "2 gradients for 1 inputs" in str(error_of(wrong, x_of(3)))
    wrong.gradients = lambda g: (g.astype(np.float32),)
    assert "is float32, x is float64" in str(error_of(wrong, x_of(3)))
    wrong.gradients = lambda g: (np.stack([g, g]),)
    assert "not summed over the axes that were broadcast" in str(error_of(wrong, x_of(3)))
    wrong.gradients = lambda g: (g * np.nan,)
    assert "backward gave nan for x" in str(error_of(wrong, x_of(3)))


# --- bad input: the function or the reference is at fault ---------------------------------------


def test_a_function_that_is_not_deterministic():
    rng = np.random.default_rng(0)
    error = error_of(lambda x: x * rng.standard_normal(3), x_of(3))
    assert error.verdict is Verdict.UNRELIABLE
    assert "not deterministic" in str(error)


def test_dropout_is_named_as_the_reason():
    layer = nn.LSTM(2, 3, 2, dropout=0.5, dtype="float64", rng=0)
    error = error_of(layer, x_of(4, 1, 2))
    assert error.verdict is Verdict.UNRELIABLE
    assert ".eval()" in str(error)
    assert check_module(layer.eval(), x_of(4, 1, 2)).verdict is Verdict.RIGHT


def test_parameters_built_inside():
    error = error_of(lambda x: nn.GRU(2, 3, dtype="float64")(x)[0], x_of(4, 1, 2))
    assert error.verdict is Verdict.UNRELIABLE
    assert "builds its parameters inside (L0.fwd.W_x (2, 9)" in str(error)


@pytest.mark.parametrize(
    ("f", "x", "words"),
    [
        (lambda x: ops.log(x), [-1.0, 1.0], "returned nan in output 0 at [0]"),
        (lambda x: x * 2, [1, 2], "no input requires a gradient (dtypes: int64)"),
        (lambda x: x > 0, [1.0, 2.0], "its outputs are no floating numbers (bool)"),
        (lambda x: x.data * 2, [1.0, 2.0], "returned ndarray, not a Tensor"),
        (lambda x: x * 2, [np.nan, 1.0], "input x is not finite"),
    ],
)
def test_nothing_to_check(f, x, words):
    with np.errstate(invalid="ignore"):
        error = error_of(f, x)
    assert error.verdict is Verdict.UNRELIABLE
    assert words in str(error)


def test_an_input_changed_in_place():
    def f(x):
        x.data += 1
        return x * 2

    assert "changed its input x in place" in str(error_of(f, x_of(3)))


def test_a_gradient_that_is_missing_is_wrong_and_not_unreliable():
    def f(x):
        with no_grad():
            return ops.tanh(x)

    error = error_of(f, x_of(3))
    assert error.verdict is Verdict.WRONG
    assert "backward gives 0 everywhere" in str(error)


def test_a_complex_step_that_lies_is_no_wrong_gradient():
    def f(x):
        return Tensor(np.sum(np.abs(x.data)), requires_grad=False) * 0.0 + ops.abs(x)

    x = np.array([1.0, -2.0])
    error = error_of(f, x, method="complex")
    assert error.verdict is Verdict.UNRELIABLE
    assert "not complex-safe" in str(error)
    assert check_grad(f, x).method == "ridders"


def test_an_error_of_the_function_itself_is_its_own():
    with pytest.raises(ValueError, match="do not fit") as found:
        check_grad(lambda x, y: x @ y, np.ones((2, 3)), np.ones((2, 3)))
    assert "called forward with x (2, 3) float64" in found.value.__notes__[0]


def test_settings_that_do_not_exist():
    for setting in ({"method": "magic"}, {"kinks": "maybe"}, {"order": 3}, {"blocks": "few"},
                    {"outputs": "none"}, {"wrt": 5}):  # fmt: skip
        with pytest.raises(ValueError, match=str(next(iter(setting)))):
            check_grad(ops.exp, x_of(2), **setting)
    with pytest.raises(TypeError, match="neither a function"):
        check_grad(3.0, x_of(2))


# --- what stands beside --------------------------------------------------------------------------


def test_derivative_knows_its_error_and_kinks():
    smooth = derivative(lambda x: np.sum(np.sin(x)), [0.3, 1.0], [1.0, -2.0])
    assert smooth.method == "complex step"
    assert smooth.value == pytest.approx(np.cos(0.3) - 2 * np.cos(1.0), rel=1e-15)
    ridders = derivative(lambda x: np.sum(np.sin(x)), [0.3], [1.0], method="ridders")
    assert abs(ridders.value - np.cos(0.3)) <= ridders.error < 1e-9
    real = derivative(lambda x: float(np.sum(np.abs(x) ** 3)), [-0.5], [1.0])
    assert real.method == "ridders"
    assert abs(real.value + 0.75) <= real.error
    assert derivative(lambda x: np.abs(x).sum(), [0.0], [2.0]).kink == (-2.0, 2.0)
    edge = derivative(lambda x: np.log(x).sum(), [0.01], [1.0], method="ridders")
    assert abs(edge.value - 100) <= edge.error < 1e-4  # steps that leave the domain are left out
    with pytest.raises(ValueError, match="the direction"):
        derivative(np.sum, [1.0], [1.0, 2.0])


def test_the_taylor_remainder_falls_with_its_square():
    f = lambda x: ops.exp(x).sum()  # noqa: E731
    x = x_of(3)
    assert check_taylor(f, x).verdict is Verdict.RIGHT
    with pytest.raises(GradientError, match="falls with rate 1"):
        check_taylor(f, x, np.exp(x) * 1.01)


def test_adapters_meet_the_protocol():
    d = from_function(lambda x, y: x * y)
    (z,) = d.forward(np.array([2.0]), np.array([3.0]))
    assert z.tolist() == [6.0]
    assert check_grad(d, x_of(3), x_of(3)).verdict is Verdict.RIGHT
    layer = nn.RNN(2, 3, dtype="float64", rng=0)
    m = from_module(layer, x_of(4, 1, 2))
    out, h = m.forward(*m.arrays)
    assert (out.shape, h.shape) == ((4, 1, 3), (1, 1, 3))
    gradients = m.vjp(m.arrays, [np.ones_like(out), None])
    assert [g.shape for g in gradients] == [a.shape for a in m.arrays]


def test_every_report_reaches_the_listeners(planted):
    seen = []
    LISTENERS.append(seen.append)
    try:
        check_grad(ops.exp, x_of(2))
        planted(ops.exp, lambda g, y, x: g)
        error_of(ops.exp, x_of(2))
    finally:
        LISTENERS.remove(seen.append)
    assert [r.verdict for r in seen] == [Verdict.RIGHT, Verdict.WRONG]
    assert seen[0].as_dict()["verdict"] == "right"
    assert seen[0].ops == ("exp",)


# --- initial states -------------------------------------------------------------------------------


class Starting(nn.RNNCell):
    """Starts elsewhere than at zero."""

    def initial_state(self, batch):
        return np.full((batch, self.hidden_size), 0.25, self.dtype)


class Learning(nn.RNNCell):
    """Learns where to start."""

    def __init__(self, input_size, hidden_size, **settings):
        super().__init__(input_size, hidden_size, **settings)
        self.start = Parameter(np.ones((1, hidden_size), self.dtype))

    def initial_state(self, batch):
        return ops.broadcast(self.start, shape=(batch, self.hidden_size))


@pytest.mark.parametrize("x", [x_of(3, 2, 2), x_of(3, 2)])
def test_a_state_that_does_not_start_at_zero(x):
    cells = [Starting(2, 3, dtype="float64", rng=0), Starting(3, 2, dtype="float64", rng=1)]
    subject = from_module(nn.Recurrent(cells), x)
    assert {float(v) for s in subject.arrays[1:3] for v in s.ravel()} == {0.25}
    want = nn.Recurrent(cells)(x)[0].data
    np.testing.assert_array_equal(subject.forward(*subject.arrays)[0], want)
    assert check_module(nn.Recurrent(cells), x).verdict is Verdict.RIGHT


def test_a_learned_start_is_checked_as_the_parameter_it_is():
    layer = nn.Recurrent(Learning(2, 3, dtype="float64", rng=0))
    report = check_module(layer, x_of(3, 2, 2))
    assert "L0.fwd.start" in {f.input for f in report.findings}
    assert max(f.scale for f in report.findings if f.input == "L0.fwd.start") > 0


def test_a_rule_that_gives_nan_is_named(planted):
    planted(ops.sqrt, lambda g, y, x: g / (y - y))
    message = str(error_of(lambda x: ops.sqrt(x * x + 1.0) * 2.0, x_of(2)))
    assert "rule  sqrt  kit/test_checks.py:" in message


def test_a_sum_that_cancels_in_float32_is_no_false_alarm():
    """The cotangents of one entry nearly add up to 0: rounding is relative to what is added."""
    x = np.ones(2, np.float32)
    seen = [
        f.note
        for seed in range(30)
        for f in check_grad(lambda x: x[np.zeros(50, int)], x, seed=seed).findings
    ]
    assert "ill-conditioned" in seen


def test_a_branch_that_rounding_turns_is_no_false_alarm():
    """In float32 the sum is 0, in float64 1e-9: each is right about another side of the kink."""
    x = np.array([1.0, -1.0, 1e-9], np.float32)
    f = lambda x: ops.where(x[0] + x[2] + x[1] > 0, x * x, 0.5 * x)  # noqa: E731
    report = check_grad(f, x)
    assert report.verdict is Verdict.UNRELIABLE
    assert report.inconclusive == len(report.findings)
    assert check_grad(f, x.astype(np.float64)).verdict is Verdict.RIGHT


@pytest.mark.parametrize(
    "cfg",
    [
        RNNConfig(strategies.rnn_relu, T=28, N=1, D=4, H=3, batch_first=True, seed=42),
        RNNConfig(strategies.rnn_relu, T=7, N=2, D=4, H=1, layers=3, batch_first=True, seed=41),
    ],
)
def test_one_kink_deep_inside_the_tape_is_no_false_alarm(cfg):
    """A single preactivation is 0: of the slopes from both sides only the sixth digit differs."""
    layer = cfg.make()
    report = check_module(layer, cfg.x(), state=cfg.initial(layer), seed=cfg.seed)
    assert report.verdict is not Verdict.WRONG
    assert any("kink" in f.note for f in report.findings)


def test_a_wrong_rule_is_found_beside_a_kink(planted):
    planted(ops.tanh, lambda g, y, x: g * (1 - y * y) * 1.001)
    x = np.array([0.0, 1.0])
    assert "tanh" in str(error_of(lambda x: ops.tanh(ops.where(x > 0, x, 0.0) + 0.5), x))
