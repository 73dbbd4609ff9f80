"""Functions on Tensors that run compiled: recorded once per signature, then replayed.

A function runs twice on Tensors that refuse to show their values, the second time with other
numbers: a constant that changes was computed behind the ops' backs.  Its gradients come from the
ops' own rules.  What it made becomes two Python functions of NumPy calls, one for each direction.
"""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import autodiff
from ..arrays import Array
from ..module import Module
from ..scope import ALWAYS, NEEDED, at, masked, recording, scope
from ..tensor import Tensor, _node
from .errors import CompileError
from .layer import CompileWarning
from .outside import PLAIN, LastingError, Outside, told
from .passes import Schedule
from .recording import Place, spread
from .replay import COMPUTED, CONSTANT, ComplexError, Recording, recorded
from .tape import Cotangents, ending_at, loop, output

_KEPT = 32  # recordings of a function


class Replay:
    """One call of a recorded function: what the node on the tape runs, see ``tape.Run``.

    The inputs of the node are those of the recording that require a gradient.
    """

    __slots__ = ("call", "fixed", "kept", "leaves", "outputs", "recording")

    def __init__(
        self, recording: Recording, call: Callable[[Sequence[Any]], Any],
        leaves: list[Tensor], fixed: list[Array],
    ) -> None:  # fmt: skip
        self.recording, self.call, self.leaves, self.fixed = recording, call, leaves, fixed
        self.outputs: tuple[Array, ...] = ()
        self.kept: tuple[Array, ...] = ()

    def forward(self, arrays: Sequence[Array]) -> Array:
        """Compute all outputs; keep what the way back reads."""
        self.outputs, self.kept = self.recording.forward(*arrays, *self.fixed)
        return self.recording.token

    def backward(self, g: Cotangents, arrays: Sequence[Array]) -> Sequence[Any]:
        """Return the gradients of all inputs."""
        seeds = []
        for k in self.recording.seeded:
            seed = g.parts.get(k)
            seeds.append(np.zeros_like(self.outputs[k]) if seed is None else seed)
        found: Sequence[Any] = self.recording.backward(*arrays, *self.fixed, self.kept, seeds)
        return found

    def again(self, g: Cotangents, inputs: Sequence[Tensor]) -> list[Any]:
        """Return the gradients of all inputs as Tensors, from a graph of the function itself."""
        with recording(), at(None), masked(None):
            leaves, wrt, own = list(self.leaves), [], []
            for source, t in zip(self.recording.sources, inputs, strict=False):
                if isinstance(source, int):
                    leaves[source] = t = t * 1
                    own.append(t)
                wrt.append(t)
            with ending_at(own):
                outs: dict[int, Tensor] = {}
                spread(self.call(leaves), Tensor, lambda t: outs.setdefault(t.order, t))
                made = list(outs.values())
                return autodiff.gradients(
                    [made[k] for k in g.parts], wrt, list(g.parts.values()), create_graph=True
                )


class CompiledFunction:
    """A function on Tensors that runs compiled; made by ``compile(f)``, called as f is."""

    def __init__(self, f: Callable[..., Any]) -> None:
        functools.update_wrapper(self, f, updated=())
        self.f = f
        self._around = Outside(f)
        self._recordings: dict[Any, Any] = {}  # or why there is none
        self._plan: Schedule | None = None
        self._why = ""
        self._full = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what f returns."""
        here = scope()
        if here.mode == ALWAYS or here.frozen is not None:  # all nodes are wanted
            return self.f(*args, **kwargs)
        key: Any = None
        reason: CompileError
        leaves: list[Tensor] = []
        try:
            named = _key(kwargs, leaves) if kwargs else ()
            key = here.mode, _key(args, leaves), named, self._around()
            if any([t.data.dtype.kind == "c" for t in leaves]):  # complex steps are for checks
                return self.f(*args, **kwargs)
            found: Any = self._recordings.get(key)
            if found is None:
                found = self._recordings.get(key[:3])
            if found is None or (type(found) is Recording and found.outdated()):
                self._around = Outside(self.f)  # a name may stand for a function that reads others
                key = *key[:3], self._around()
                call = functools.partial(_call, self.f, args, kwargs)
                found = recorded(call, leaves, self._around, (args, kwargs), here.mode == NEEDED)
                self._store(key, found)
            if type(found) is Recording:
                return self._replay(found, args, kwargs, leaves)
            reason = found
        except CompileError as error:
            reason = error
        result = self.f(*args, **kwargs)  # an error of its own says more than ours
        self._tell(key, reason)
        return result

    def _replay(self, found: Recording, args: Any, kwargs: Any, leaves: list[Tensor]) -> Any:
        sources = [leaves[s] if type(s) is int else s for s in found.sources]
        arrays = [s.data for s in sources]
        n = found.recorded
        call = functools.partial(_call, self.f, args, kwargs)
        run = Replay(found, call, leaves, arrays[n:])
        try:
            token: Any = run.forward(arrays[:n])
        except (ValueError, IndexError, TypeError, ArithmeticError):
            self.f(*args, **kwargs)  # names the op, and what does not fit
            raise
        self._plan, self._why = found.plan, ""
        if n:
            token = _node(loop, tuple(sources[:n]), {"run": run}, token, True)
        made: list[Any] = []
        for k, (kind, name) in enumerate(found.outs):
            if kind is COMPUTED:
                y = _node(output, (token,), {"run": run, "key": k}, run.outputs[k], True)
            elif kind is CONSTANT:
                y = Tensor(run.outputs[k])
            else:  # what was given, or stands outside
                made.append(leaves[kind] if type(kind) is int else kind)
                continue
            y.name = name
            made.append(y)
        if type(found.template) is Place:
            return made[found.template.k]
        return spread(found.template, Place, lambda place: made[place.k])

    def _store(self, key: Any, found: Any) -> None:
        for old in list(self._recordings)[: max(0, len(self._recordings) - _KEPT + 1)]:
            self._recordings.pop(old, None)
            if not self._full:
                self._full = True
                self._warn(
                    f"was recorded for more than {_KEPT} signatures, which takes longer than to "
                    f"run it: pass numbers that change as arrays, and inputs of few shapes"
                )
        self._recordings[key] = found

    def _tell(self, key: Any, reason: CompileError) -> None:
        """Note why f itself was run, and warn of it once."""
        if type(reason) is LastingError:
            key = key[:3]
        if key is not None and key not in self._recordings:
            self._store(key, type(reason)(str(reason)))  # without the frames it came from
        if self._why != str(reason):
            self._why = str(reason)
            if type(reason) is not ComplexError:
                self._warn(f"runs plainly: {reason}")

    def _warn(self, text: str) -> None:
        name = getattr(self.f, "__qualname__", type(self.f).__name__)
        warnings.warn(f"{name} {text}", CompileWarning, stacklevel=4)

    @property
    def plan(self) -> Schedule | None:
        """What the last compiled call ran: ``pre`` is its forward, ``sink`` its backward."""
        return self._plan

    def report(self) -> str:
        """Return what became of the last call, in words."""
        lines = [f"runs plainly: {self._why}"] if self._why else []
        plan = self._plan
        if plan is None:
            return "\n".join(lines or ["not called yet"])
        lines.append("back end: NumPy")
        for name, part in {"forward": plan.pre, "backward": plan.sink}.items():
            lines.append(f"{name}: {len(part.values)}")
            lines += [f"    {v}" for v in part.values]
        lines.append("kept for the gradients: " + ", ".join([f"v{v.number}" for v in plan.kept]))
        return "\n".join(lines)

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        return CompiledFunction(copy.deepcopy(self.f, memo))

    def __repr__(self) -> str:
        return f"compile({self.f!r})"


def _call(
    f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: Sequence[Any]
) -> Any:
    """Call f with other Tensors in the place of those among its arguments."""
    rest = iter(leaves)
    given = spread((args, kwargs), (Tensor, np.ndarray, np.generic), lambda _: next(rest))
    return f(*given[0], **given[1])


def _key(value: Any, leaves: list[Tensor]) -> Any:
    """Return what a recording depends on, of an argument; gather the Tensors in it."""
    kind = type(value)
    if isinstance(value, Tensor | np.ndarray | np.generic):
        t = value if isinstance(value, Tensor) else Tensor(value)
        leaves.append(t)
        return t.data.shape, t.data.dtype, t.requires_grad
    if kind in PLAIN:
        return kind, value
    if isinstance(value, tuple) or kind is list:
        return kind, tuple([_key(v, leaves) for v in value])
    if kind is dict:
        return kind, tuple([(k, _key(v, leaves)) for k, v in value.items()])
    if isinstance(value, Module):
        return told(value)
    try:
        hash(value)
    except TypeError:
        raise CompileError(
            f"an argument of type {kind.__name__} is no Tensor, no array and not hashable"
        ) from None
    return kind, value
