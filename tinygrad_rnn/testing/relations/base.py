"""What a relation is: claims about outputs and gradients, compared one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import graph
from ...arrays import Array
from ...scope import no_grad
from ...tensor import Tensor
from ...transforms import grad
from .. import report as reports
from ..configs import RNNConfig
from ..estimate import complex_step, ridders
from ..report import Finding, GradientError, GradReport, require_close

RTOL = 1e-9
BIT = 0.0  # as a relative tolerance: equal to the bit


class Claim(NamedTuple):
    """Two arrays that have to agree."""

    what: str
    got: Any
    want: Any
    rtol: float = RTOL


class Fact(NamedTuple):
    """Something that has to hold, and what is said where it does not."""

    holds: bool
    text: str


Claims = Iterator[Claim | Fact]
Needs = Callable[[RNNConfig], str | None]

RELATIONS: dict[str, Relation] = {}


class Relation:
    """A property of gradients, callable by itself; it raises where a claim of it fails.

    Attributes
    ----------
    number : int
        In the order of the engine's properties, then of the layers'.
    name, kind : str
        The kind is ``"engine"`` or ``"layer"``.
    run : callable
        The generator of its claims.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> from tinygrad_rnn.testing import relations
    >>> relations.carry.needs(RNNConfig(nn.LSTM, T=1))
    'needs two steps: T is 1'
    >>> relations.carry(RNNConfig(nn.LSTM, T=2)).verdict.value
    'right'
    """

    def __init__(self, number: int, kind: str, run: Callable[..., Claims], needs: Needs) -> None:
        functools.update_wrapper(self, run)
        self.number, self.name, self.kind = number, run.__name__, kind
        self.run, self._needs = run, needs

    def needs(self, cfg: RNNConfig) -> str | None:
        """Return in words why the relation does not apply to the configuration; None if it does."""
        return self._needs(cfg)

    def __call__(self, *args: Any, **settings: Any) -> GradReport:
        """Compare claim after claim.

        Raises
        ------
        GradientError
            At the first claim that fails, and where the code under test raises.
        TypeError
            Where a relation between layers is not given a configuration.
        """
        cfg = args[0] if args and isinstance(args[0], RNNConfig) else None
        if self.kind == "layer" and (cfg is None or len(args) > 1):
            raise TypeError(f"relations.{self.name} takes one RNNConfig")
        what = f"{self.name} of {cfg!r}" if cfg is not None else self.name
        report = GradReport(what, method="relation", config=cfg)
        place = "" if cfg is None else f"\n  with {cfg!r}"
        try:
            with np.errstate(all="ignore"):  # NaN and 800 are planted on purpose
                for claim in self.run(*args, **settings):
                    report.findings.append(self._compare(claim))
                    report.evaluations += 1
        except GradientError as error:
            raise GradientError(f"{error}{place}", report) from None
        except Exception as error:
            text = f"{self.name}: stopped by {type(error).__name__}: {error}{place}"
            raise GradientError(text, report) from error
        for listen in getattr(reports, "LISTENERS", ()):
            listen(report)
        return report

    def _compare(self, claim: Claim | Fact) -> Finding:
        """Return the finding of a claim that holds."""
        if isinstance(claim, Fact):
            if not claim.holds:
                raise GradientError(f"{self.name}: {claim.text}")
            return Finding(self.name, claim.text, 0.0, 0.0, 1.0, 0.0, "relation", 0.0)
        got, want = np.asarray(claim.got), np.asarray(claim.want)
        require_close(self.name, claim.what, got, want, claim.rtol)
        equal = np.array_equal(got, want, equal_nan=True)
        difference = 0.0 if equal else float(np.linalg.norm(got - want))
        scale = float(np.linalg.norm(want))
        limit = max(claim.rtol * scale, np.finfo(np.float64).tiny)
        return Finding(self.name, claim.what, difference, 0.0, limit, 0.0, "relation", scale)

    def __repr__(self) -> str:
        return f"<relation {self.number} {self.name}>"


def _always(cfg: RNNConfig) -> None:
    """Apply to every configuration."""


def relation(
    number: int, kind: str, needs: Needs = _always
) -> Callable[[Callable[..., Claims]], Relation]:
    """Enter a generator of claims into ``RELATIONS`` under its name."""

    def enter(run: Callable[..., Claims]) -> Relation:
        made = RELATIONS[run.__name__] = Relation(number, kind, run, needs)
        return made

    return enter


# --- functions of Tensors ------------------------------------------------------------------------


class Tape(NamedTuple):
    """One recorded call: its outputs, and the inputs that are differentiated."""

    ys: list[Tensor]
    xs: list[Tensor]  # all inputs
    leaves: list[Tensor]  # the floating ones

    def pull(self, us: Sequence[Any], create_graph: bool = False) -> list[Any]:
        """Return the gradients of sum <u, y> at the leaves; a u of None leaves its y out."""
        pairs = [(y, u) for y, u in zip(self.ys, us, strict=True) if u is not None]
        return pull([y for y, _ in pairs], self.leaves, [u for _, u in pairs], create_graph)


def pull(
    ys: Sequence[Tensor], leaves: Sequence[Tensor], us: Sequence[Any], create_graph: bool = False
) -> list[Any]:
    """Return the gradients of sum <u, y> at the leaves, zeros where no y was recorded."""
    if not any(y.op is not None or any(y is x for x in leaves) for y in ys):
        zeros = [np.zeros(x.shape, x.dtype) for x in leaves]
        return [Tensor(z) for z in zeros] if create_graph else zeros
    return list(grad(list(ys), list(leaves), list(us), create_graph))


def tape(f: Callable[..., Any], arrays: Sequence[Any], dtype: Any = None) -> Tape:
    """Call a function on fresh leaves of the arrays."""
    arrays = [np.array(a) for a in arrays]
    if dtype is not None:
        arrays = [a.astype(dtype) if a.dtype.kind in "fc" else a for a in arrays]
    xs = [Tensor(a, requires_grad=a.dtype.kind in "fc") for a in arrays]
    return Tape(listed(f(*xs)), xs, [x for x in xs if x.requires_grad])


def listed(y: Any) -> list[Tensor]:
    """Return the outputs of a function as a list."""
    ys = list(y) if isinstance(y, list | tuple) else [y]
    for k, out in enumerate(ys):
        if not isinstance(out, Tensor):
            raise TypeError(f"output {k} of the function is {type(out).__name__}, not a Tensor")
    return ys


def weights(ys: Sequence[Tensor], seed: int = 0) -> list[Array]:
    """Return a random cotangent for each output."""
    rng = np.random.default_rng([seed, 17])
    return [np.asarray(rng.standard_normal(y.shape), y.dtype) for y in ys]


def slope(along: Callable[[Any], Any], ys: Sequence[Tensor]) -> tuple[float, float]:
    """Return the derivative of the scalar ``along(t)`` at 0, and the error it may have.

    By a complex step where every op that made `ys` is analytic, else by Ridders' differences.
    """

    def values(t: Any) -> Array:
        with no_grad():
            y = np.asarray(along(t)).reshape(1)
        return y + 0j if isinstance(t, complex) else y  # a constant stays real

    if analytic(ys):
        return float(complex_step(values)[0]), 0.0
    value, error = ridders(values, h=1 / 512)  # near enough that a kink beside it is not met
    return float(value[0]), float(error[0])


def analytic(ys: Sequence[Tensor]) -> bool:
    """Return whether a complex step through all that made `ys` is right."""
    return all(t.op is None or t.op.complex_safe for t in graph.nodes(ys))


def each(what: str, got: Sequence[Any], want: Sequence[Any], rtol: float = 1e-9) -> Claims:
    """Claim that the gradients of all inputs agree."""
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        yield Claim(f"{what} at input {k}", a, b, rtol)


def sums_equal(what: str, terms: Sequence[Array], others: Sequence[Array]) -> Claims:
    """Claim that two sums agree, relative to their terms: both may cancel to zero."""
    one, two = [np.concatenate([np.ravel(a) for a in s]) for s in (terms, others)]
    scale = 2 * (np.abs(one).sum() + np.abs(two).sum())
    yield Claim(f"{what}, + {scale:.3g}", one.sum() + scale, two.sum() + scale)
