"""What a primitive is: a forward on arrays, a formula, gradient rules.  Knows no Tensor.

Calling an op asks its operands whether one of them wants to record, as NumPy asks for
``__array_ufunc__``; where none does, the op just computes on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, overload

from .arrays import Array, array

Rule = Callable[..., Any]


Use = tuple[Any, Sequence[Any], dict[str, Any]]  # of an array: gradient, inputs, attributes


class Recording(Protocol):
    """What can record: all that this floor knows of Tensor."""

    def __record__(self, op: Op, x: Any, more: tuple[Any, ...], attrs: dict[str, Any]) -> Any: ...


R = TypeVar("R", bound=Recording)

OPS: dict[str, Op] = {}  # every primitive by name, in the order of declaration


class Op:
    """A primitive: one forward on arrays, one gradient rule per input.

    Attributes
    ----------
    name : str
        The key in ``OPS``, and what errors and drawings call it.
    forward : callable
        ``forward(*arrays, **attributes) -> array``; writes to none of its arguments.
    signature : str or None
        NumPy's generalised-ufunc signature; None for a structural op.
    formula : str
        What drawings and worked solutions print; the inputs are x, y, z.
    rules : tuple of callable or None
        ``rules[k](g, y, *inputs, **attributes)``: the gradient of input k *before*
        un-broadcasting; None where none flows.  Empty: the op has no gradient.
    rule_all : callable or None
        In the place of `rules` for any number of inputs: returns the gradients of all.
    fresh : bool
        Whether `rule_all` returns arrays that share memory with nothing else.
    differentiable : bool
        Whether a rule was declared.
    collectors : tuple of callable or None
        ``collectors[k](x, uses)``: the summed gradient of all `uses` of ``x`` as input k, in an
        array of its own.
    selects : slice
        Which inputs are indices or masks: these keep their integer or boolean type.
    doc : str or None
        One sentence on what it computes.
    reads_output, reads_inputs : bool
        Whether the rules read values of theirs, and not only shapes and types.
    linear : bool
        Linear in its differentiable inputs jointly (or, with two, in each).
    complex_safe : bool
        Analytic, so that complex-step differentiation through it is right.
    """

    __slots__ = ("collectors", "complex_safe", "differentiable", "doc", "formula", "forward",
                 "fresh", "linear", "name", "reads_inputs", "reads_output", "rule_all", "rules",
                 "selects", "signature")  # fmt: skip

    def __init__(
        self,
        forward: Callable[..., Any],
        signature: str | None,
        formula: str,
        *,
        name: str | None = None,
        doc: str | None = None,
        selects: slice = slice(0),
        reads: str = "output inputs",
        linear: bool = False,
        complex_safe: bool = True,
    ) -> None:
        self.name, self.doc = name or forward.__name__, doc or forward.__doc__
        self.forward, self.signature, self.formula = forward, signature, formula
        self.selects, self.linear, self.complex_safe = selects, linear, complex_safe
        self.reads_output, self.reads_inputs = "output" in reads, "inputs" in reads
        self.differentiable = self.fresh = False
        self.rules: tuple[Rule | None, ...] = ()
        self.rule_all: Rule | None = None
        self.collectors: tuple[Rule | None, ...] = ()
        if self.name in OPS:
            raise ValueError(f"a primitive {self.name!r} exists: {OPS[self.name].formula}")
        OPS[self.name] = self

    def vjp(self, *rules: Rule | None) -> None:
        """Declare the gradient for each input: ``rule(g, y, *inputs, **attributes)``.

        Inputs beyond the rules, such as the arrays of an index, have no gradient.
        """
        self.rules, self.collectors, self.differentiable = rules, (None,) * len(rules), True

    def vjp_all(self, rule: Rule, fresh: bool = False) -> None:
        """Declare one rule that returns the gradients of all inputs; `fresh`: see ``Op``."""
        self.rule_all, self.fresh, self.differentiable = rule, fresh, True

    def collect(self, k: int, collector: Rule) -> None:
        """Let the gradients of all uses of one array as input `k` wait and become one call."""
        self.collectors = (*self.collectors[:k], collector, *self.collectors[k + 1 :])

    @overload
    def __call__(self, x: R, *more: Any, **attrs: Any) -> R: ...
    @overload
    def __call__(self, x: Any, y: R, *more: Any, **attrs: Any) -> R: ...
    @overload
    def __call__(self, x: Any, *more: Any, **attrs: Any) -> Array: ...

    def __call__(self, x: Any, *more: Any, **attrs: Any) -> Any:
        """Compute on arrays, or let the first operand that records do it."""
        record = getattr(x, "__record__", None)
        if record is None:
            for y in more:
                record = getattr(y, "__record__", None)
                if record is not None:
                    break
            else:
                return self.forward(array(x), *more, **attrs)
        return record(self, x, more, attrs)

    def __repr__(self) -> str:
        return f"<op {self.name}: {self.formula}>"


def primitive(
    signature: str | None, formula: str, **settings: Any
) -> Callable[[Callable[..., Any]], Op]:
    """Declare a primitive: decorates its forward, a function or a ufunc; settings as of ``Op``.

    >>> import numpy as np
    >>> from tinygrad_rnn import Tensor, grad
    >>> @primitive("()->()", "x^3")
    ... def cube(x):
    ...     return x * x * x
    >>> cube.vjp(lambda g, y, x: g * 3 * x * x)
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> grad(cube(x).sum(), x)
    array([ 3., 12.])
    >>> del OPS["cube"]
    """
    return lambda forward: Op(forward, signature, formula, **settings)
