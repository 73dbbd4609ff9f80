"""Every primitive is covered, and check_op tells right rules from wrong ones."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as hst

from tinygrad_rnn import ops, testing
from tinygrad_rnn.op import OPS, primitive
from tinygrad_rnn.testing import op_cases, registry
from tinygrad_rnn.testing import strategies as st
from tinygrad_rnn.testing.cases import Case, code
from tinygrad_rnn.testing.registry import check_op, register_op, spec_of, uncovered

FRAMEWORK = dict(OPS)


@pytest.fixture
def declare(monkeypatch):
    """Declare primitives for one test alone."""
    monkeypatch.setattr(registry, "_registered", {})
    before = dict(OPS)
    yield primitive
    OPS.clear()
    OPS.update(before)


def cube(declare, rule, **settings):
    op = declare("()->()", "x^3", name="cube", **settings)(lambda x: x * x * x)
    op.vjp(rule)
    return op


def detached(x):
    return x.detach() if hasattr(x, "detach") else x


# --- the framework ---------------------------------------------------------------------------


def test_every_primitive_of_the_framework_is_covered():
    assert uncovered() == []
    assert {op.name for op in op_cases.STRUCTURAL} == {
        name for name, op in FRAMEWORK.items() if op.signature is None
    }


@pytest.mark.parametrize("name", FRAMEWORK)
def test_the_gradient_of_every_primitive(name):
    check_op(FRAMEWORK[name], max_examples=5)


@pytest.mark.parametrize("name", sorted(n for n, op in FRAMEWORK.items() if op.rules))
def test_a_slight_error_in_any_rule_is_seen(name, monkeypatch):
    op = FRAMEWORK[name]
    for k, rule in enumerate(op.rules):
        if rule is None:
            continue
        wrong = list(op.rules)
        wrong[k] = lambda *a, rule=rule, **attrs: rule(*a, **attrs) * (1 + 1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(op, "rules", tuple(wrong))
            patch.setattr(op, "collectors", (None,) * len(wrong))
            with pytest.raises(testing.GradientError):
                check_op(op, max_examples=20)


def test_corners_are_tried_whatever_is_drawn():
    shapes = [tuple(x.shape for x in c.inputs) for c in spec_of(ops.add).corners]
    assert {((), (2, 3)), ((2, 3), ()), ((0,), (1,))} <= set(shapes)
    assert [c.inputs[0].shape for c in spec_of(ops.tanh).corners] == [
        (), (0,), (1,), (2, 3), (2, 1, 3)
    ]  # fmt: skip
    assert len(spec_of(ops.matmul).corners) == len(st.MATMULS)


def test_a_rule_wrong_for_one_broadcast_alone_is_caught_in_one_example(declare):
    op = declare("(),()->()", "x y", name="times")(np.multiply)
    op.vjp(lambda g, z, x, y: g * y * (1.5 if y.ndim == 4 else 1), lambda g, z, x, y: g * x)
    with pytest.raises(testing.GradientError, match="times is wrong") as raised:
        check_op(op, max_examples=1)
    assert [x.shape for x in case_of(raised.value).inputs] == [(3, 1), (2, 1, 1, 2)]


@pytest.mark.parametrize("name", [n for n in FRAMEWORK if n != "recompute"])  # of a function
@given(data=hst.data())
def test_a_case_prints_as_the_code_that_makes_it(name, data):
    case = data.draw(spec_of(FRAMEWORK[name]).cases)
    again = eval(repr(case), {"Case": Case, "OPS": OPS, "np": np})
    assert again.op is case.op
    assert repr(again) == repr(case)
    for a, b in zip(again.inputs, case.inputs, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    np.testing.assert_array_equal(again(*again.inputs), case(*case.inputs), strict=True)


def test_values_print_as_code():
    values = [
        np.array([-0.0, np.nan, -np.inf, 5e-324]), np.array(0.1, np.float32), np.zeros((0, 3)),
        np.zeros(0, np.int64), np.zeros((2, 0), bool), np.array([True, False]),
        np.array([1, 2], np.int32), np.dtype("float16"), np.int64, slice(1, None, -2), ..., None,
        (1,), [(), "array"], {"axis": (0, -1), "dtype": np.float32},
    ]  # fmt: skip
    for value in values:
        again = eval(code(value), {"np": np})
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(again, value, strict=True)
            assert np.array_equal(np.signbit(again), np.signbit(value))
        else:
            assert again == value


# --- a user's op -----------------------------------------------------------------------------


def test_a_new_op_is_covered_by_its_signature(declare):
    softplus = declare("()->()", "log(1 + exp(x))", name="softplus")(lambda x: np.log1p(np.exp(x)))
    softplus.vjp(lambda g, y, x: g * ops.sigmoid(x))
    testing.check_op(softplus)
    assert "softplus" in testing.all_ops()
    assert uncovered() == []


def test_any_signature_will_do(declare):
    op = declare("(n),(n)->()", "x . y", name="dot")(lambda x, y: np.asarray((x * y).sum(axis=-1)))
    op.vjp(lambda g, z, x, y: g[..., None] * y, lambda g, z, x, y: g[..., None] * x)
    check_op(op)


def test_a_restricted_domain_is_registered(declare):
    op = declare("(),()->()", "x log(y)", name="xlogy")(lambda x, y: x * np.log(y))
    op.vjp(lambda g, z, x, y: g * ops.log(y), lambda g, z, x, y: g * x / y)
    with pytest.raises(testing.GradientError) as raised:
        check_op(op)
    assert raised.value.verdict is testing.Verdict.UNRELIABLE
    assert any("register_op(xlogy, domain=" in note for note in raised.value.__notes__)
    assert register_op(op, domain=[st.grid, st.positive]) is op
    check_op(op)
    assert all(np.all(c.inputs[1] > 0) for c in spec_of(op).corners)
    register_op(op, domain=[st.grid])
    with pytest.raises(ValueError, match="xlogy: 1 domains for 2 inputs"):
        check_op(op)


def test_a_structural_op_must_be_registered(declare):
    flip = declare(None, "flip(x)", name="flip")(lambda x, axis: np.flip(x, axis))
    flip.vjp(lambda g, y, x, axis: flip(g, axis=axis))
    assert uncovered() == ["flip"]
    for use in (check_op, spec_of):
        with pytest.raises(KeyError) as raised:
            use(flip)
        assert str(raised.value).startswith("flip: a structural op, without a signature; say how")
    with pytest.raises(ValueError, match="flip has no signature"):
        register_op(flip)
    cases = st.tensors((2, 3)).map(lambda x: Case(flip, (x,), {"axis": 1}))
    register_op(flip, cases=cases)
    check_op(flip)
    assert uncovered() == []
    flip.vjp(lambda g, y, x, axis: flip(g, axis=0))
    with pytest.raises(testing.GradientError, match="flip"):
        check_op(flip)


def test_an_op_with_attributes_must_be_registered(declare):
    op = declare("()->()", "a x", name="scaled")(lambda x, *, by: x * by)
    op.vjp(lambda g, y, x, by: g * by)
    assert uncovered() == ["scaled"]
    with pytest.raises(KeyError, match="scaled: its forward cannot be called with 1 arrays alone"):
        check_op(op)
    register_op(op, cases=st.tensors().map(lambda x: Case(op, (x,), {"by": 1.5})))
    check_op(op)


def test_what_is_no_primitive_is_refused(declare):
    for use in (check_op, register_op):
        with pytest.raises(TypeError, match="is no primitive"):
            use(np.tanh)
    op = cube(declare, lambda g, y, x: g * 3 * x * x)
    for wrong in ({"kinks": "ignore"}, {"order": 3}):
        with pytest.raises(ValueError, match=r"kinks=.* is one of interval, error, reject"):
            register_op(op, **wrong)


# --- what is caught ----------------------------------------------------------------------------


def case_of(error):
    """Return the application that a failure names."""
    text = re.search(r"Case\(.*\)", "\n".join(error.__notes__))[0]
    return eval(text.rstrip(","), {"Case": Case, "OPS": OPS, "np": np})


def test_the_failure_names_the_application_as_code(declare):
    op = declare("()->()", "x^3", name="cube")(lambda x: x * x * x)
    op.vjp(lambda g, y, x: g * (3 * x * x + (x.ndim == 3) * 0.5))
    with pytest.raises(testing.GradientError, match="cube is wrong") as raised:
        check_op(op)
    assert case_of(raised.value).inputs[0].ndim == 3


def test_the_failing_application_is_a_small_one(declare):
    op = declare("(n),(n)->()", "x . y", name="dot")(lambda x, y: np.asarray((x * y).sum(axis=-1)))
    op.vjp(lambda g, z, x, y: g[..., None] * y, lambda g, z, x, y: g[..., None] * y)
    with pytest.raises(testing.GradientError, match="dot is wrong") as raised:
        check_op(op)
    assert max(x.size for x in case_of(raised.value).inputs) == 1


def wrong_for_scalars(g, y, x):
    return g * 3 * x * x * (2 if x.ndim == 0 else 1)


def low_precision(g, y, x):
    return (g * 3 * x * x).astype("float32").astype(g.dtype)


def writes_to_the_cotangent(g, y, x):
    if isinstance(g, np.ndarray) and g.ndim:
        g *= 3
        return g * x * x
    return g * 3 * x * x


def wrong_again_differentiated(g, y, x):
    return g * 3 * x * detached(x)


def forgets_a_factor(g, y, x):
    return g * x * x


@pytest.mark.parametrize(
    "rule",
    [wrong_for_scalars, low_precision, writes_to_the_cotangent, wrong_again_differentiated,
     forgets_a_factor],
)  # fmt: skip
def test_wrong_rules_are_caught(rule, declare):
    with pytest.raises(testing.GradientError, match="cube"):
        check_op(cube(declare, rule))


def test_the_order_may_be_limited(declare):
    op = cube(declare, wrong_again_differentiated)
    check_op(op, order=1)
    register_op(op, order=1)
    check_op(op)
    with pytest.raises(testing.GradientError):
        check_op(op, order=2)


def test_dtypes_may_be_chosen(declare):
    def rule(g, y, x):
        return g * 3 * x * x * (1.5 if g.dtype == np.float32 else 1.0)

    op = cube(declare, rule)
    check_op(op, dtypes=["float64"])
    with pytest.raises(testing.GradientError):
        check_op(op)


def test_ops_without_a_gradient_are_checked_too(declare):
    calls = itertools.count()
    random = declare("()->()", "random", name="random")(lambda x: (x > 0) ^ (next(calls) % 2 > 0))
    with pytest.raises(testing.GradientError, match="random: called twice"):
        check_op(random)

    def raise_it(x):
        x += 1
        return x > 0

    with pytest.raises(testing.GradientError, match="raised: its forward writes to its inputs"):
        check_op(declare("()->()", "x + 1 > 0", name="raised")(raise_it))
    check_op(declare("()->()", "x > 0", name="sign_bit")(lambda x: x > 0))


# --- what is loaded ----------------------------------------------------------------------------


def test_hypothesis_is_loaded_on_first_use():
    code = (
        "import sys, tinygrad_rnn.testing, tinygrad_rnn.testing.registry as r\n"
        "assert 'hypothesis' not in sys.modules and 'pytest' not in sys.modules\n"
        "sys.modules['hypothesis'] = None\n"
        "from tinygrad_rnn import ops\n"
        "try:\n    r.check_op(ops.tanh)\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "random cases need hypothesis: pip install hypothesis"


@pytest.mark.parametrize(
    "op", [ops.getitem, ops.take, ops.part, ops.matmul], ids=lambda op: op.name
)
def test_a_rule_that_its_collector_stands_before_is_checked_too(op, monkeypatch):
    k = next(k for k, c in enumerate(op.collectors) if c is not None)
    rules = list(op.rules)
    rules[k] = lambda *args, rule=op.rules[k], **attrs: rule(*args, **attrs) * 1.001
    monkeypatch.setattr(op, "rules", tuple(rules))
    with pytest.raises(testing.GradientError, match="beside its collector"):
        check_op(op, max_examples=5)
