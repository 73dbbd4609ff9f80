"""The mutators, mutants of an op's rules, and the list of those that are equivalent."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.mutation import runner
from tests.mutation.areas import AREAS, ROOT, file_of
from tests.mutation.equivalent import EQUIVALENT
from tinygrad_rnn import Tensor, grad, ops
from tinygrad_rnn.op import OPS, Op
from tinygrad_rnn.testing.checks import check_grad
from tinygrad_rnn.testing.mutation import KINDS, applied, mutants, rule_mutants, survivors
from tinygrad_rnn.testing.report import GradientError

SOURCE = '''
def f(x, y: int, axis=0):
    """A text: 1 + 1."""
    if x.ndim < 1:
        raise ValueError(f"{1 + 1}")
    x = x.T @ y
    total = x.sum(axis=1, keepdims=True)
    total += g(x[1:], y[0])
    if not total.any():
        return unbroadcast(-total, x.shape)
    for k in range(3):
        total[k] = x.copy() - 2
    return total if axis == 0 else total / x


own.vjp(lambda g, y, x: g * 3, lambda g, y, x: g)
'''


def test_every_kind_of_fault_is_made_where_it_can_be():
    assert {m.kind for m in mutants(SOURCE)} == set(KINDS)


def found(kind):
    return {(m.before, m.after) for m in mutants(SOURCE) if m.kind == kind}


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("transpose", "x.T @ y", "x @ y"),
        ("transpose", "x.T @ y", "y @ x.T"),
        ("transpose", "x.T @ y", "x.T @ y.mT"),
        ("axis", "x.sum(axis=1, keepdims=True)", "x.sum(axis=2, keepdims=True)"),
        ("axis", "x.sum(axis=1, keepdims=True)", "x.sum(axis=1, keepdims=False)"),
        ("axis", "x.sum(axis=1, keepdims=True)", "x.sum(axis=1)"),
        ("index", "g(x[1:], y[0])", "g(x[2:], y[0])"),
        ("index", "g(x[1:], y[0])", "g(x[1:], y[-1])"),
        ("swapped arguments", "g(x[1:], y[0])", "g(y[0], x[1:])"),
        ("swapped arguments", "total / x", "x / total"),
        ("missing un-broadcast", "unbroadcast(-total, x.shape)", "-total"),
        ("missing un-broadcast", "x.sum(axis=1, keepdims=True)", "x"),
        ("missing copy", "x.copy() - 2", "x - 2"),
        ("negated condition", "not total.any()", "total.any()"),
        ("dropped statement", "total[k] = x.copy() - 2", "pass"),
        ("sign", "g", "-g"),
        ("factor", "g * 3", "0.5 * (g * 3)"),
        ("constant", "g * 3", "g * 4"),
        ("dropped term", "g * 3", "g"),
    ],
)
def test_faults_are_those_that_are_meant(kind, before, after):
    assert any(before in b and after in a for b, a in found(kind)), found(kind)


def test_what_cannot_be_seen_is_left_alone():
    for m in mutants(SOURCE):
        assert "1 + 1" not in m.before
        assert m.before not in ("int", "x.ndim < 1")


def test_mutants_are_in_order_never_twice_and_always_the_same():
    several = mutants(SOURCE)
    assert [m.key for m in several] == [m.key for m in mutants(SOURCE)]
    assert len({m.key for m in several}) == len(several)
    texts = [m.source for m in several]
    assert len(set(texts)) == len(texts)
    assert SOURCE.strip() not in texts
    assert all(m.compile("text") for m in several)


def test_a_part_of_a_text_is_chosen_by_patterns():
    assert {m.function for m in mutants(SOURCE)} == {"f", "own.vjp"}
    assert {m.function for m in mutants(SOURCE, ["*.vjp"])} == {"own.vjp"}
    nested = "class A:\n    def f(self):\n        def g(a):\n            return a + 1\n"
    assert {m.function for m in mutants(nested, ["A.f*"])} == {"A.f.g"}
    assert mutants(nested, ["B*"]) == []


# --- rules ---------------------------------------------------------------------------------------


@pytest.fixture
def own():
    two = 2.0

    def by_x(g, z, x, y, scale=1.5):
        """Not a fault: 1 + 1."""
        return g * y * two * scale

    op = Op(lambda x, y: 3 * x * y, None, "3 x y", name="own", doc="A product.")
    op.vjp(by_x, lambda g, z, x, y: g * x * two * 1.5)
    yield op
    del OPS["own"]


def wrong(op):
    def kills():
        x = np.array([1.0, -2.0])
        try:
            check_grad(op, x, x + 0.25)
        except GradientError:
            return True
        return False

    return kills


def test_no_mutant_of_a_rule_survives_a_gradient_check(own):
    several = rule_mutants(own)
    assert len(several) >= 20
    assert {m.mutant.function for m in several} == {"own.rules[0]", "own.rules[1]"}
    assert survivors(own, wrong(own)) == []


def test_mutants_survive_what_checks_nothing(own):
    left = survivors(own, lambda: False)
    assert left == [m.mutant for m in rule_mutants(own)]


def test_checks_that_fail_without_a_fault_are_refused(own):
    with pytest.raises(ValueError, match="own fail without a fault"):
        survivors(own, lambda: True)


def test_several_lambdas_on_a_line_are_told_apart(own):
    own.vjp(lambda g, z, x, y: g * y * 3.0, lambda g, z, x, y: g * x * 3.0)
    x, y = Tensor([1.0, -2.0], requires_grad=True), Tensor([0.5, 4.0], requires_grad=True)
    right, before = grad(own(x, y).sum(), [x, y]), own.rules
    for m in rule_mutants(own):
        ((_, k),) = m.slots
        with applied(own, m):
            other = grad(own(x, y).sum(), [x, y][1 - k])
            np.testing.assert_array_equal(other, right[1 - k])
            assert own.rules[1 - k] is before[1 - k]
            assert own.rules[k] is m.rule
    np.testing.assert_array_equal(grad(own(x, y).sum(), [x, y]), right)


def test_a_rule_is_put_back_also_after_an_error(own):
    before = own.rules

    def fail():
        with applied(own, rule_mutants(own)[0]):
            assert own.rules[0] is not before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert own.rules == before


def test_a_rule_that_serves_twice_is_mutated_in_both_places(own):
    rule = lambda g, z, x, y: g * (x + y)  # noqa: E731
    own.vjp(rule, rule)
    for m in rule_mutants(own):
        assert m.slots == (("rules", 0), ("rules", 1))
        with applied(own, m):
            assert own.rules[0] is own.rules[1] is m.rule


def test_rules_of_all_inputs_and_collectors_are_mutated_too():
    assert {m.mutant.function for m in rule_mutants(ops.concat)} == {"concat.rule_all"}
    assert {m.mutant.function for m in rule_mutants(ops.matmul)} == {
        "matmul.rules[0]", "matmul.rules[1]", "matmul.collectors[1]",
    }  # fmt: skip


def test_every_rule_of_the_package_has_mutants():
    for op in list(OPS.values()):
        if op.differentiable:
            assert rule_mutants(op), op


def test_a_rule_without_a_text_says_so(own):
    own.vjp(eval("lambda g, z, x, y: g * y * 3.0"), None)
    with pytest.raises(ValueError, match=r"own\.rules\[0\] cannot be mutated: there is no text"):
        rule_mutants(own)
    own.vjp(np.multiply, None)
    with pytest.raises(ValueError, match="write it as a function or a lambda in a file"):
        rule_mutants(own)


# --- the run over the framework ------------------------------------------------------------------


def keys():
    for areas in AREAS.values():
        for module, where in areas.items():
            for m in mutants(file_of(module).read_text(), where):
                yield module, m.key


def test_there_are_enough_mutants_and_few_are_listed_as_equivalent():
    every = list(keys())
    assert len(set(every)) == len(every) >= 300
    assert len(EQUIVALENT) <= 0.03 * len(every)


def test_what_is_listed_as_equivalent_exists_and_has_a_reason():
    gone = set(EQUIVALENT) - set(keys())
    assert not gone, "the code has changed: run `python -m tests.mutation`, and mend the list"
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())


def test_the_run_kills_what_is_wrong_and_says_what_survives(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.mutation", "--only", "ops", "--match", "exp.vjp"]
    done = subprocess.run(
        [*command, "--report", str(report)], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks pass without a fault" in done.stdout
    results = json.loads(report.read_text())
    assert len(results) >= 4
    assert {r["outcome"] for r in results} <= {"check", "error"}
    assert f"{len(results)} mutants, {len(results)} killed (100.0%" in done.stdout


def test_the_run_refuses_to_start_where_the_package_is_imported_already():
    with pytest.raises(RuntimeError, match="imported before"):
        runner.run(runner.jobs(["ops"], "tanh.vjp"))
