"""How each primitive is tested: derived from its signature, or registered."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..op import OPS, Op
from ..ops import unbroadcast
from ..tensor import Tensor
from . import profiles
from .cases import Case, Domain
from .checks import check_grad
from .compare import KINKS
from .integrity import check_vjp
from .locate import source_of
from .report import GradientError, Verdict, require_close
from .slopes import weights

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = [
    "Case", "OpSpec", "all_ops", "check_case", "check_op", "examples", "register_op", "spec_of",
    "uncovered",
]  # fmt: skip


@dataclass(frozen=True)
class OpSpec:
    """How a primitive is tested.

    Attributes
    ----------
    op : Op
    given : strategy of Case, or None
        As registered; None: from the signature.
    domain : callable, sequence of them, or None
        ``values(rng, shape)`` for all inputs, or one for each.
    kinks : str
        What a check does at a point without a derivative: "interval", "error" or "reject".
    order : int
        Up to which the gradient can be differentiated.
    """

    op: Op
    given: SearchStrategy[Case] | None = field(default=None, repr=False)
    domain: Domain | None = None
    kinks: str = "interval"
    order: int = 2

    @cached_property
    def cases(self) -> SearchStrategy[Case]:
        """A strategy of applications; built on first use, since it needs hypothesis."""
        if self.given is not None:
            return self.given
        known = _known()
        found: SearchStrategy[Case] | None = known.STRUCTURAL.get(self.op)
        return known.by_signature(self.op, self.domain) if found is None else found

    @property
    def corners(self) -> list[Case]:
        """The applications that are always tried: scalars, empty arrays, every broadcast."""
        if self.given is not None:
            return []
        found: list[Case] = _known().corner_cases(self.op, self.domain)
        return found


_registered: dict[Op, OpSpec] = {}


def register_op(
    op: Op,
    *,
    cases: SearchStrategy[Case] | None = None,
    domain: Domain | None = None,
    kinks: str = "interval",
    order: int = 2,
) -> Op:
    """Say how a primitive is tested, where its signature does not; returns the op.

    Parameters
    ----------
    op : Op
    cases : hypothesis strategy of Case, optional
        Whole applications, for a structural op or one with attributes.
    domain : callable or sequence of callables, optional
        What the inputs are drawn from: ``strategies.positive``, or one for each input.
    kinks : {"interval", "error", "reject"}, optional
    order : int
        1 where the gradient cannot be differentiated again.

    Raises
    ------
    TypeError
        If `op` is no primitive.
    ValueError
        If neither cases nor a signature say what the inputs are.

    Examples
    --------
    >>> from tinygrad_rnn.op import primitive
    >>> from tinygrad_rnn.testing.cases import positive
    >>> half = primitive("()->()", "x / 2", name="half")(lambda x: x / 2)
    >>> register_op(half, domain=positive)
    <op half: x / 2>
    >>> spec_of(half).domain is positive
    True
    >>> del OPS["half"]
    """
    if not isinstance(op, Op):
        raise TypeError(
            f"register_op: {op!r} is no primitive; declare it with @primitive, or check a function "
            f"with check_grad"
        )
    if cases is None and op.signature is None and not _has_strategy(op):
        raise ValueError(
            f"register_op: {op.name} has no signature, so its inputs are unknown; pass cases=, "
            f"a strategy of testing.Case"
        )
    if kinks not in KINKS or order not in (1, 2):
        raise ValueError(
            f"register_op: kinks={kinks!r} is one of {', '.join(KINKS)}; order={order!r} is 1 or 2"
        )
    _registered[op] = OpSpec(op, cases, domain, kinks, order)
    return op


def all_ops() -> dict[str, Op]:
    """Return every primitive by name: the framework's and those of the user.

    >>> len(all_ops()) > 30, all_ops()["tanh"]
    (True, <op tanh: tanh(x)>)
    """
    return dict(OPS)


def spec_of(op: Op) -> OpSpec:
    """Return how a primitive is tested: as registered, else as its signature says.

    Raises
    ------
    KeyError
        For a structural op, or one with attributes, that was not registered.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> spec_of(ops.tanh)
    OpSpec(op=<op tanh: tanh(x)>, domain=None, kinks='interval', order=2)
    """
    if op in _registered:
        return _registered[op]
    reason = _unknown(op)
    if reason and not _has_strategy(op):
        raise _UncoveredError(
            f"{op.name}: {reason}; say how it is applied: "
            f"testing.register_op({op.name}, cases=a strategy of testing.Case)"
        )
    return OpSpec(op)


def uncovered() -> list[str]:
    """Return the names of the primitives that no test can be made for: register them.

    >>> uncovered()
    []
    """
    found = []
    for name, op in OPS.items():
        try:
            spec_of(op)
        except KeyError:
            found.append(name)
    return found


class _UncoveredError(KeyError):
    def __str__(self) -> str:  # a KeyError shows the repr of its text
        return str(self.args[0])


def _unknown(op: Op) -> str | None:
    """Return why an op cannot be applied by its signature alone; None if it can."""
    if op.signature is None:
        return "a structural op, without a signature"
    if isinstance(op.forward, np.ufunc):
        return None
    count = op.signature.split("->")[0].count("(")
    try:
        inspect.signature(op.forward).bind(*range(count))
    except TypeError as error:
        return f"its forward cannot be called with {count} arrays alone ({error})"
    except ValueError:  # a builtin without a signature
        return None
    return None


def _has_strategy(op: Op) -> bool:
    return op in _known().STRUCTURAL


def _known() -> Any:
    """Return the strategies of the framework's primitives."""
    try:
        return importlib.import_module(".op_cases", __package__)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise ImportError("random cases need hypothesis: pip install hypothesis") from None


# --- checks --------------------------------------------------------------------------------------


def check_op(
    op: Op,
    max_examples: int | None = None,
    order: int | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
) -> None:
    """Check the gradient of a primitive over shapes, values and attributes drawn at random.

    First and second order, broadcast and empty shapes, each dtype, integrity (nothing mutated,
    nothing shared, the same result again); for an op without a gradient, that none flows.

    Parameters
    ----------
    op : Op
    max_examples : int, optional
        By default what the hypothesis profile says.
    order : int, optional
        1 or 2; by default what is registered, 2.
    dtypes : sequence of str

    Raises
    ------
    GradientError
        With the smallest failing application as code.
    KeyError
        For a structural op that was not registered.
    TypeError
        If `op` is no primitive.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> check_op(ops.tanh, max_examples=5)
    """
    if not isinstance(op, Op):
        raise TypeError(
            f"check_op: {op!r} is no primitive; check a function with check_grad(f, *inputs)"
        )
    spec = spec_of(op)
    order = spec.order if order is None else order

    def check(case: Case) -> None:
        for dtype in dtypes:
            check_case(case, dtype, order=order, kinks=spec.kinks)

    try:
        for case in spec.corners:
            try:
                check(case)
            except GradientError as error:
                error.add_note(f"Falsifying example: {case!r}")
                raise
        examples(check, spec.cases, max_examples)
    except GradientError as error:
        if error.verdict is Verdict.UNRELIABLE:
            error.add_note(
                f"if these inputs are outside of its domain, say so: "
                f"testing.register_op({op.name}, domain=testing.strategies.positive)"
            )
        raise


def check_case(
    case: Case, dtype: str = "float64", *, order: int = 2, kinks: str = "interval"
) -> None:
    """Check one application of a primitive: its gradient, and its integrity.

    Raises
    ------
    GradientError

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> check_case(Case(ops.mul, (np.array([1.0, 2.0]), np.array(0.5))))
    """
    # digits beyond float32, so that a rule that computes in it is seen; ties and zeros stay
    factor = 1 + 2.0**-29 / 3 if dtype == "float64" else 1.0
    case = case.replace(lambda x: (x * factor).astype(dtype))
    if not case.op.differentiable:
        _check_without_gradient(case)
        return
    f, arrays = _function(case)
    check_grad(f, *arrays, order=order, kinks=kinks)
    check_vjp(f, *arrays)
    _check_shadowed(case)


def _check_shadowed(case: Case) -> None:
    """Check the rules that never run since a collector stands before them: both say the same."""
    op, y = case.op, np.asarray(case(*case.inputs))
    u = weights(y.shape, np.random.default_rng(0)).astype(y.dtype)
    for k, (rule, collector) in enumerate(zip(op.rules, op.collectors, strict=False)):
        if rule is None or collector is None:
            continue
        alone = np.asarray(rule(u, y, *case.inputs, **case.attrs))
        g = unbroadcast(alone, case.inputs[k].shape)
        together = collector(case.inputs[k], [(u, case.inputs, case.attrs)])
        require_close(
            f"{op.name}{source_of(rule)}", f"the rule of input {k} beside its collector", g,
            together, 1e-9 if y.dtype.itemsize >= 8 else 1e-4,
        )  # fmt: skip


def _function(case: Case) -> tuple[Callable[..., Any], list[Any]]:
    """Return the case as a function of its differentiable inputs alone, and these."""
    wrt = case.wrt

    def f(*xs: Any) -> Any:
        inputs: list[Any] = list(case.inputs)
        for k, x in zip(wrt, xs, strict=True):
            inputs[k] = x
        return case(*inputs)

    f.__name__ = case.op.name
    return f, [case.inputs[k] for k in wrt]


def _check_without_gradient(case: Case) -> None:
    """Check that an op without a rule is pure and lets no gradient flow."""
    name = case.op.name
    before = [x.tobytes() for x in case.inputs]
    first, again = case(*case.inputs), case(*case.inputs)
    if [x.tobytes() for x in case.inputs] != before:
        raise GradientError(f"{name}: its forward writes to its inputs; it must copy them")
    if not np.array_equal(first, again, equal_nan=np.asarray(first).dtype.kind in "fc"):
        raise GradientError(f"{name}: called twice with the same inputs it gives two values")
    xs = [Tensor(x, requires_grad=x.dtype.kind in "fc") for x in case.inputs]
    if case(*xs).requires_grad:
        raise GradientError(f"{name}: it has no rule, and its result requires a gradient")


def examples(
    check: Callable[[Any], None], cases: SearchStrategy[Any], max_examples: int | None = None
) -> None:
    """Run a check over drawn cases; a failure is shrunk, and names the smallest case.

    Raises
    ------
    Exception
        What the check raised for the smallest case.
    """
    _known()
    from hypothesis import Phase, given, settings

    phases = [phase for phase in Phase if phase is not Phase.explain]  # the case says it all
    chosen = settings(profiles.profile(), report_multiple_bugs=False, phases=phases)
    if max_examples is not None:
        chosen = settings(chosen, max_examples=max_examples)

    @chosen
    @given(case=cases)
    def run(case: Any) -> None:
        check(case)

    run()
