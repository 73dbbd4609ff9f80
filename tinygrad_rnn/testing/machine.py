"""A state machine over an engine: random graphs in it and in a naive engine must agree.

For this framework it drives the tape itself; for another engine it grows random programs and
takes them through the two methods of a Differentiable.
"""

from __future__ import annotations

import gc
import operator
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .. import ops
from ..arrays import Array
from ..functional import stack
from ..scope import no_grad
from ..tensor import Tensor
from ..transforms import grad
from . import reference
from .reference import Ref
from .report import GradientError
from .steps import Program, Step
from .subject import Differentiable

STEPS = 30  # that one example may take
SIZE, LARGE = 64, 100.0  # of an array; of a value, where 1e-12 still means something
APART = 1e-6  # operands of maximum: nearer than that, rounding would decide who gets the gradient
SHAPES = [(), (1,), (3,), (2, 3), (3, 2), (1, 3), (2, 1), (2, 2, 3)]
INDICES = [0, -1, slice(1, None), ..., (..., None), np.array([0, 0, -1]), (..., 0)]
PICK = st.integers(0, 10**6)

OWN = SimpleNamespace(
    negative=ops.neg, tanh=ops.tanh, sigmoid=ops.sigmoid, square=lambda x: x * x,
    add=ops.add, subtract=ops.sub, multiply=ops.mul, maximum=ops.maximum,
    matmul=operator.matmul, where=ops.where,
    sum=lambda x, axis: x.sum(axis),
    reshape=lambda x, shape: x.reshape(shape),
    swapaxes=lambda x, a, b: x.transpose(_swapped(x.ndim, a, b)),
    broadcast_to=lambda x, shape: ops.broadcast(x, shape=shape),
    concatenate=lambda parts: ops.concat(*parts),
    stack=stack,
)  # fmt: skip


def _swapped(n: int, a: int, b: int) -> tuple[int, ...]:
    order = list(range(n))
    order[a], order[b] = order[b], order[a]
    return tuple(order)


@dataclass(eq=False)
class Node:
    """A value in both engines; `exact` where no rounding has touched it."""

    number: int
    ref: Ref
    live: Any
    exact: bool = False


class Growing(RuleBasedStateMachine):
    """The rules that grow a graph, whatever engine it is in."""

    F: ClassVar[Any] = OWN

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.steps: list[Step] = []

    def pick(self, k: int) -> Node:
        """Return one of the nodes."""
        return self.nodes[k % len(self.nodes)]

    def leaf(self, values: Array, needs: bool) -> Node:
        """Start from an array; one of booleans is a mask and no operand of anything else."""
        self.steps.append(Step("leaf", (), (values,)))
        return Node(len(self.steps) - 1, Ref(values, needs), self.begin(values, needs), True)

    def grow(self, name: str, *xs: Node, args: tuple[Any, ...] = ()) -> None:
        """Apply a primitive in both engines, where the engine has it."""
        if name != "getitem" and not hasattr(self.F, name):
            return
        shapes = [x.ref.value.shape for x in xs]
        if name in reference.BINARY and np.prod(np.broadcast_shapes(*shapes)) > SIZE:
            return
        ref = reference.apply(name, [x.ref for x in xs], args)
        if ref.value.size > SIZE or not ref.value.size:  # what is empty has tests of its own
            return
        step = Step(name, tuple([x.number for x in xs]), args)
        self.steps.append(step)
        exact = all(x.exact for x in xs) and (name in reference.MOVES or name == "negative")
        self.keep(Node(len(self.steps) - 1, ref, self.apply(step, [x.live for x in xs]), exact))
        if np.abs(ref.value).max() > LARGE:
            self.grow("tanh", self.nodes.pop())

    # --- what an engine makes of it

    def begin(self, values: Array, needs: bool) -> Any:
        """Return a leaf of the engine."""

    def apply(self, step: Step, lives: list[Any]) -> Any:
        """Return what the engine makes of a step."""

    def keep(self, node: Node) -> None:
        """Take a new node among those to pick from."""
        self.nodes.append(node)

    # --- rules

    @initialize(shapes=st.tuples(st.sampled_from(SHAPES), st.sampled_from(SHAPES)), seed=PICK)
    def start(self, shapes: tuple[tuple[int, ...], ...], seed: int) -> None:
        """Make two leaves, since an example may go without the rule that makes more."""
        for k, shape in enumerate(shapes):
            self.create(shape, seed + k, True)

    @rule(shape=st.sampled_from(SHAPES), seed=PICK, needs=st.sampled_from([True, True, False]))
    def create(self, shape: tuple[int, ...], seed: int, needs: bool) -> None:
        """Make a leaf."""
        values = np.asarray(np.random.default_rng(seed).integers(-16, 17, shape) / 8)
        self.keep(self.leaf(values, needs))

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, name=st.sampled_from(sorted(reference.UNARY)))
    def unary(self, k: int, name: str) -> None:
        """Apply a function of one operand."""
        self.grow(name, self.pick(k))

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, j=PICK, name=st.sampled_from(sorted(reference.BINARY)))
    def binary(self, k: int, j: int, name: str) -> None:
        """Apply a function of two operands that broadcast."""
        x, y = self.together(k, j)
        gap = np.abs(x.ref.value - y.ref.value)
        if name != "maximum" or x is y or (x.exact and y.exact) or gap.min(initial=1) > APART:
            self.grow(name, x, y)

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, j=PICK, seed=PICK, row=st.booleans())
    def where(self, k: int, j: int, seed: int, row: bool) -> None:
        """Choose by a mask."""
        x, y = self.together(k, j)
        shape = np.broadcast_shapes(x.ref.value.shape, y.ref.value.shape)
        if hasattr(self.F, "where") and np.prod(shape) <= SIZE:
            values = np.random.default_rng(seed).random(shape[1:] if row else shape) < 0.5
            self.grow("where", self.leaf(np.asarray(values), False), x, y)

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, j=PICK)
    def matmul(self, k: int, j: int) -> None:
        """Multiply two matrices."""
        x, y = self.pick(k), self.pick(j)
        if x.ref.value.ndim != 2:
            return
        if y.ref.value.ndim != 2 or len(y.ref.value) != x.ref.value.shape[1]:
            self.grow("swapaxes", x, args=(0, 1))
            y = self.nodes[-1]
        if y.ref.value.shape[:-1] == x.ref.value.shape[1:]:
            self.grow("matmul", x, y)

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, index=st.sampled_from(INDICES))
    def read(self, k: int, index: Any) -> None:
        """Index."""
        x = self.pick(k)
        if x.ref.value.ndim:
            self.grow("getitem", x, args=(index,))

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, how=st.sampled_from(["swap", "flat", "row", "sum", "lead", "ones"]))
    def view(self, k: int, how: str) -> None:
        """Give elements another shape, or add some."""
        x = self.pick(k)
        shape = x.ref.value.shape
        if how in ("flat", "row"):
            self.grow("reshape", x, args=((-1,) if how == "flat" else (1, -1),))
        elif how in ("lead", "ones"):
            to = (2, *shape) if how == "lead" else tuple([3 if n == 1 else n for n in shape])
            self.grow("broadcast_to", x, args=(to,))
        elif how == "sum" and shape:
            self.grow("sum", x, args=(k % len(shape),))
        elif how == "swap" and len(shape) > 1:
            self.grow("swapaxes", x, args=(0, len(shape) - 1))

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, j=PICK)
    def concat(self, k: int, j: int) -> None:
        """Lay two arrays one after the other."""
        x, y = self.pick(k), self.pick(j)
        if x.ref.value.ndim:
            alike = y.ref.value.ndim and y.ref.value.shape[1:] == x.ref.value.shape[1:]
            self.grow("concatenate", x, y if alike else x)

    def together(self, k: int, j: int) -> tuple[Node, Node]:
        """Return two nodes whose shapes broadcast: the same one twice where these do not."""
        x, y = self.pick(k), self.pick(j)
        try:
            np.broadcast_shapes(x.ref.value.shape, y.ref.value.shape)
        except ValueError:
            y = x
        return x, y


class TapeMachine(Growing):
    """Grow a graph on the tape and in the naive engine: all that can be asked must agree.

    Rules: create, every family of primitives, views, reuse, ``no_grad``, ``detach``,
    ``backward`` (again and again), gradients inside the graph, ``zero`` and ``del``.  After each
    of them values and ``.grad`` agree with a naive graph in float64; at the end every node is
    freed without the garbage collector.  ``on(F, adapter)`` gives the test of another engine.

    Examples
    --------
    In a test file, for this framework and for another engine::

        TestTape = TapeMachine.on()
        TestHips = TapeMachine.on(autograd.numpy, from_autograd)
    """

    def __init__(self) -> None:
        super().__init__()
        gc.disable()
        self.leaves: list[Node] = []
        self.dead: list[weakref.ref[Tensor]] = []  # to every node there ever was

    @classmethod
    def on(
        cls,
        F: Any = None,
        adapter: Callable[[Callable[..., Any]], Differentiable] | None = None,
        *,
        settings: settings | None = None,
    ) -> Any:
        """Return a TestCase: the tape of this framework, or programs of another engine.

        Parameters
        ----------
        F : namespace, optional
            Primitives under NumPy's names and arguments, as ``autograd.numpy``, ``jax.numpy``
            and ``torch`` have them: negative, tanh, square, add, subtract, multiply, maximum,
            matmul, sum, reshape, swapaxes, concatenate, where, broadcast_to; sigmoid.  Those
            that it lacks are not used.  Arrays of it can be indexed.
        adapter : callable
            Makes a Differentiable of a function: ``from_torch``, or one of your own.
        settings : hypothesis.settings, optional
        """
        if (F is None) != (adapter is None):
            raise TypeError("TapeMachine.on: F, the primitives, and adapter go together")
        machine: Any = type(cls.__name__, (cls,), {})
        if adapter is not None:
            body = {"F": F, "adapter": staticmethod(adapter)}
            machine = type(ProgramMachine.__name__, (ProgramMachine,), body)
        case = machine.TestCase
        case.settings = settings or _settings()
        return case

    def begin(self, values: Array, needs: bool) -> Any:
        """Return a leaf Tensor; a mask stays an array."""
        return values if values.dtype == bool else Tensor(values, requires_grad=needs)

    def apply(self, step: Step, lives: list[Any]) -> Tensor:
        """Record a step."""
        made: Tensor = step.run(self.F, lives)
        return made

    def keep(self, node: Node) -> None:
        """Compare the value, and remember the node weakly."""
        t, r = node.live, node.ref
        assert isinstance(t, Tensor)
        assert t.requires_grad == r.needs
        np.testing.assert_allclose(t.data, r.value, rtol=1e-12, atol=1e-12, strict=True)
        super().keep(node)
        if t.op is None and r.needs:
            self.leaves.append(node)
        self.dead.append(weakref.ref(t))

    def other(self, t: Tensor, ref: Ref) -> None:
        """Keep what no primitive made."""
        self.steps.append(Step("leaf", (), (t.data,)))
        self.keep(Node(len(self.steps) - 1, ref, t))

    def needing(self, k: int) -> Node:
        """Return one of the nodes that require a gradient."""
        nodes = [n for n in self.nodes if n.ref.needs]
        return nodes[k % len(nodes)]

    @precondition(lambda self: self.nodes)
    @rule(k=PICK)
    def reverse(self, k: int) -> None:
        """Read backwards."""
        x = self.pick(k)
        if x.ref.value.ndim:
            self.grow("getitem", x, args=(slice(None, None, -1),))

    @precondition(lambda self: self.nodes)
    @rule(k=PICK)
    def detach(self, k: int) -> None:
        """Cut the graph."""
        x = self.pick(k)
        self.other(x.live.detach(), x.ref.detached())

    @precondition(lambda self: self.nodes)
    @rule(k=PICK)
    def unrecorded(self, k: int) -> None:
        """Compute without recording."""
        x = self.pick(k)
        with no_grad():
            self.other(-x.live * 0.5, Ref(-x.ref.value * 0.5))

    @precondition(lambda self: any(n.ref.needs for n in self.nodes))
    @rule(k=PICK, times=st.integers(1, 2))
    def backward(self, k: int, times: int) -> None:
        """Add to the gradients of the leaves."""
        x = self.needing(k)
        for _ in range(times):
            x.live.backward(np.ones(x.live.shape))
            reference.backward(x.ref, [n.ref for n in self.leaves])

    @precondition(lambda self: any(n.ref.needs for n in self.nodes))
    @rule(k=PICK, j=PICK, create_graph=st.booleans())
    def gradient_inside(self, k: int, j: int, create_graph: bool) -> None:
        """Ask for the gradient by any node."""
        x, y = self.needing(k), self.needing(j)
        if x.live.op is None and x is not y:
            return  # a leaf is no output of anything
        arrived = reference.gradients(x.ref, np.ones(x.live.shape))
        want = arrived.get(id(y.ref), np.zeros(y.live.shape))
        g = grad(x.live, y.live, np.ones(x.live.shape), create_graph)
        np.testing.assert_allclose(np.asarray(g), want, rtol=1e-11, atol=1e-11, strict=True)

    @rule()
    def zero(self) -> None:
        """Forget the gradients."""
        for n in self.leaves:
            n.live.grad = n.ref.grad = None

    @precondition(lambda self: self.nodes)
    @rule(k=PICK)
    def forget(self, k: int) -> None:
        """Drop a node."""
        del self.nodes[k % len(self.nodes)]

    @invariant()
    def gradients_agree(self) -> None:
        """Compare the gradients of all leaves."""
        for n in self.leaves:
            t, r = n.live, n.ref
            assert (t.grad is None) == (r.grad is None)
            if t.grad is not None:
                assert type(t.grad) is np.ndarray
                np.testing.assert_allclose(t.grad, r.grad, rtol=1e-11, atol=1e-11, strict=True)

    def teardown(self) -> None:
        """Ask for the gradients of the last node; free everything by reference counting alone."""
        failing = sys.exc_info()[0] is not None  # its traceback holds nodes
        try:
            if not failing and any(n.ref.needs for n in self.nodes):
                self.backward(-1, 1)
                self.gradients_agree()
        finally:
            self.nodes.clear()
            self.leaves.clear()
            alive = [w for w in self.dead if w() is not None]
            gc.enable()
        assert failing or not alive, f"{len(alive)} nodes outlive the last reference to their graph"


def _settings() -> settings:
    return settings(
        settings.default,
        deadline=None,
        stateful_step_count=STEPS,
        suppress_health_check=list(HealthCheck),
    )


class ProgramMachine(Growing):
    """Grow a program of another engine's primitives; run it through forward and vjp."""

    adapter: ClassVar[Any] = None

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Node] = []

    def leaf(self, values: Array, needs: bool) -> Node:
        """Start from an array: every input but a mask has a gradient here."""
        return super().leaf(values, values.dtype != bool)

    @precondition(lambda self: self.nodes)
    @rule(k=PICK, j=PICK, seed=PICK, second=st.sampled_from(["none", "zero", "dense"]))
    def compare(self, k: int, j: int, seed: int, second: str) -> None:
        """Ask for values and gradients of two outputs; the second may have no cotangent."""
        nodes = [self.pick(k), self.pick(j)]
        rng = np.random.default_rng(seed)
        dense = [np.asarray(rng.integers(-8, 9, n.ref.value.shape) / 8) for n in nodes]
        seeds: list[Array | None] = [u.copy() for u in dense]
        if second != "dense":
            seeds[1] = None if second == "none" else np.zeros_like(dense[1])
            dense[1] = np.zeros_like(dense[1])
        program = self.program(nodes)
        leaves = program.leaves
        given = [(f"v{n}", a) for n, a in leaves.items()]
        given += [(f"cotangent {n}", u) for n, u in enumerate(seeds) if u is not None]
        before = [a.tobytes() for _, a in given]
        ask = _Ask(self.adapter(lambda *xs: program(self.F, *xs)), program)
        values = ask("forward", *leaves.values())
        largest = max([float(np.abs(n.ref.value).max()) for n in self.nodes])
        for n, value in zip(nodes, values, strict=True):
            ask.same("value", f"v{n.number}", value, n.ref.value, largest)
        gradients = ask("vjp", list(leaves.values()), seeds)
        for (name, a), bytes_before in zip(given, before, strict=True):
            if a.tobytes() != bytes_before:
                raise ask.error(f"{name} was changed in place")
        refs = {n.number: n.ref for n in self.inputs if n.number in leaves}
        arrived = reference.gradients([n.ref for n in nodes], dense)
        largest = max([float(np.abs(g).max()) for g in arrived.values()])
        for number, g in zip(leaves, gradients, strict=True):
            if number in refs:
                want = arrived.get(id(refs[number]), np.zeros(refs[number].value.shape))
                ask.same("gradient", f"v{number}", g, want, largest)

    def keep(self, node: Node) -> None:
        """Remember the leaves by themselves."""
        super().keep(node)
        if self.steps[node.number].name == "leaf":
            self.inputs.append(node)

    def teardown(self) -> None:
        """Compare once more: the last node, and one before it."""
        if sys.exc_info()[0] is None and self.nodes:
            self.compare(-1, len(self.nodes) // 2, len(self.steps), "dense")

    def program(self, nodes: Sequence[Node]) -> Program:
        """Return the steps that these nodes were made by."""
        outputs = tuple([n.number for n in nodes])
        used = set(outputs)
        for number in range(len(self.steps) - 1, -1, -1):
            if number in used:
                used.update(self.steps[number].operands)
        return Program({k: self.steps[k] for k in sorted(used)}, outputs)


@dataclass(frozen=True)
class _Ask:
    """Calls the two methods; says in words, and as a program, what is wrong."""

    subject: Any
    program: Program

    def __call__(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self.subject, method)(*args)
        except Exception as error:
            raise self.error(f"{method} raised {type(error).__name__}: {error}") from error

    def same(self, what: str, name: str, got: Any, want: Array, scale: float) -> None:
        """Require a value of the naive engine, within what rounding explains."""
        if got is None:
            got = np.zeros(want.shape)
        a = np.asarray(got)
        if a.shape != want.shape:
            whose = "the input" if what == "gradient" else "the naive engine's"
            raise self.error(f"{what} of {name} has shape {a.shape}, {whose} has {want.shape}")
        gap = float(np.abs(a - want).max(initial=0))
        if not gap <= 1e-11 * max(scale, 1.0):
            raise self.error(f"{what} of {name} is {a.tolist()}, expected {want.tolist()}")

    def error(self, text: str) -> GradientError:
        lines = str(self.program).replace("\n", "\n    ")
        return GradientError(f"the engine against a naive one: {text}\n  program\n    {lines}")
