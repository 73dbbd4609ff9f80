"""Every engine relation holds for the real rules, and fails for one planted defect at least."""

import numpy as np
import pytest

from tests.kit.planting import edit, rule
from tinygrad_rnn import Tensor, autodiff, functional, ops, tensor
from tinygrad_rnn.testing import relations
from tinygrad_rnn.testing.report import GradientError, Verdict

ENGINE = [name for name, r in relations.RELATIONS.items() if r.kind == "engine"]

GENERAL = ["adjoint", "linearity", "chain", "fan_out", "shapes_and_dtypes", "symmetry",
           "building_order", "accumulation", "layout", "release"]  # fmt: skip


@pytest.mark.parametrize("name", ENGINE)
def test_it_holds_for_the_written_cases(name):
    report = relations.check(name)
    assert report.verdict is Verdict.RIGHT
    assert len(report.findings) > 5


def test_it_holds_for_functions_of_ones_own():
    x, W, i = np.ones((2, 3)), np.eye(3), np.array([1, 0, 1])
    for name in GENERAL:
        relations.check(name, lambda x, W: (ops.tanh(x @ W), x.sum()), x, W)
        relations.check(name, lambda W, i: ops.take(W, i) * 2, W, i)
        relations.check(name, lambda x: x, x)  # an output that is an input
    relations.broadcasting(lambda x, y: ops.exp(-x) / y)
    relations.euler(lambda x, y: x @ y, x, W, degree=2)
    relations.invariance(functional.softmax, x, under="shift")


def test_it_holds_without_axes_and_without_elements():
    for x in (np.array(0.5), np.ones((0, 2))):
        for name in GENERAL:
            relations.check(name, lambda x: ops.tanh(x) * x, x)


def test_a_constant_output_has_a_gradient_of_zero():
    for name in ("adjoint", "linearity", "accumulation", "release"):
        relations.check(name, lambda x: Tensor(np.ones(2)), np.ones(3))


# --- defects ---------------------------------------------------------------------------------


def twice_too_large(m):
    rule(m, ops.tanh, lambda g, y, x: 2 * (g - g * (y * y)))


def a_wrong_max(m):
    rule(m, ops.maximum, lambda g, z, x, y: ops.where(x >= y, g, 0.0) * 0.999)


def clipped(m):
    rule(m, ops.tanh, lambda g, y, x: np.clip(g, -1, 1) * (1 - y * y))


def a_constant_added(m):
    rule(m, ops.sigmoid, lambda g, y, x: g * (y - y * y) + 1e-300)


def negated_too_much(m):
    rule(m, ops.neg, lambda g, y, x: -2 * g)


def overwritten(m):
    edit(m, autodiff, "sweep", "after = before + gx", "after = gx + 0")


def averaged(m):
    real = ops.unbroadcast
    m.setattr(autodiff, "unbroadcast",
              lambda g, shape: real(g, shape) * np.prod(shape) / max(g.size, 1))  # fmt: skip


def leading_axes_not_summed(m):
    edit(m, ops, "unbroadcast", "return sum(g, axis=axes)",
         "g, axes = g[(0,) * lead + (...,)], tuple([a - lead for a in axes if a >= lead])\n"
         "    return sum(g, axis=axes)")  # fmt: skip
    m.setattr(autodiff, "unbroadcast", ops.unbroadcast)


def wider(m):
    rule(m, ops.tanh, lambda g, y, x: (g - g * (y * y)).astype(np.float64))
    m.setattr(autodiff, "of_dtype", lambda g, dtype: g)


def recorded_by_detach(m):
    m.setattr(tensor.Tensor, "detach", lambda self: self)


def repeated_rows_lost(m):
    def forward(*parts, index, shape):
        y, arrays = np.zeros(shape), iter(parts[len(index) :])
        for i, part in zip(index, parts, strict=False):
            y[ops._fill(i, arrays)] += part
        return y

    m.setattr(ops.scatter, "forward", forward)


def parts_off_by_one(m):
    def rule_all(g, y, *parts, axis=0):
        return ops._concat_all(np.roll(g, 1, axis), y, *parts, axis=axis)

    m.setattr(ops.concat, "rule_all", rule_all)


def a_lost_sign(m):
    rule(m, ops.div, None, lambda g, z, x, y: g * z / y)


def a_lost_sum(m):
    rule(m, ops.log_softmax, lambda g, y, x, axis=-1: g - ops.exp(y) * g)


def one_sided_product(m):
    rule(m, ops.mul, lambda g, z, x, y: 2 * (g * y))


def the_later_counts_more(m):
    edit(m, autodiff, "sweep", "after = before + gx", "after = before + gx * (1 + 1e-9)")


def grad_replaced(m):
    edit(m, tensor.Tensor, "backward", "np.asarray(t._grad + g)", "g")


def output_written_to(m):
    def in_place(g, y, x):
        y *= y
        return g - g * y

    rule(m, ops.tanh, in_place)


def gradient_is_the_seed(m):
    edit(m, autodiff, "sweep", "g if create_graph or k in own else np.array(g)", "g")
    m.setattr(autodiff, "seed", lambda y, gradient: np.asarray(gradient, y.dtype))


def read_by_memory(m):
    def by_memory(g, y, x):
        return (g.ravel() * y.ravel(order="K")).reshape(g.shape)

    rule(m, ops.exp, by_memory)


def kept_alive(m):
    kept, node = [], tensor._node

    def keeping(*args):
        kept.append(node(*args))
        return kept[-1]

    m.setattr(tensor, "_node", keeping)


def recursive(m):
    def walk(outputs, requiring=False):
        found = {}

        def visit(t):
            if t.order not in found:
                found[t.order] = t
                for x in t.inputs:
                    visit(x)

        for t in outputs:
            visit(t)
        return [found[k] for k in sorted(found)]

    m.setattr(autodiff.graph, "nodes", walk)


DEFECTS = [
    ("adjoint", twice_too_large), ("adjoint", a_wrong_max),
    ("linearity", clipped), ("linearity", a_constant_added),
    ("chain", negated_too_much),
    ("fan_out", overwritten),
    ("broadcasting", averaged), ("broadcasting", leading_axes_not_summed),
    ("shapes_and_dtypes", wider), ("shapes_and_dtypes", recorded_by_detach),
    ("scatter", repeated_rows_lost), ("scatter", parts_off_by_one),
    ("euler", a_lost_sign),
    ("invariance", a_lost_sum),
    ("symmetry", one_sided_product),
    ("building_order", the_later_counts_more),
    ("accumulation", grad_replaced), ("accumulation", output_written_to),
    ("accumulation", gradient_is_the_seed),
    ("layout", read_by_memory),
    ("release", kept_alive), ("release", recursive),
]  # fmt: skip


@pytest.mark.parametrize(("name", "defect"), DEFECTS)
def test_a_planted_defect_is_caught(name, defect, monkeypatch):
    defect(monkeypatch)
    with pytest.raises(GradientError) as caught:
        relations.check(name)
    text = str(caught.value)
    assert text.startswith(f"{name}: ")
    assert defect is recursive or "stopped by" not in text
    assert caught.value.verdict is Verdict.WRONG


def test_every_relation_has_a_defect():
    assert {name for name, _ in DEFECTS} == set(ENGINE)


# --- what is said ------------------------------------------------------------------------------


def test_the_message_says_relation_block_place_and_both_numbers(monkeypatch):
    a_lost_sign(monkeypatch)
    with pytest.raises(GradientError, match=r"adjoint: <V\(u\), v> at input 1 is .*, but .* is "):
        relations.adjoint(lambda x, y: x / y, np.ones(2), np.full(2, 2.0))
    repeated_rows_lost(monkeypatch)
    with pytest.raises(GradientError, match=r"scatter: V of x\[\[0, 2, 2, -1\]\] differs by .* "
                       r"most at \[2, 0\]: .*, expected "):  # fmt: skip
        relations.scatter()


def test_what_the_function_raises_is_no_stack_trace_of_the_kit():
    with pytest.raises(
        GradientError, match="linearity: stopped by TypeError: output 0 of the func"
    ):
        relations.linearity(lambda x: 3, np.ones(2))
    with pytest.raises(GradientError, match="chain: stopped by ShapeError: matmul"):
        relations.chain(lambda x, y: x @ y, np.ones((2, 3)), np.ones((2, 3)))


def test_a_wrong_name_is_said_with_the_right_ones():
    with pytest.raises(KeyError, match="no relation is called 'carri'; there are adjoint, linear"):
        relations.check("carri")
