"""Layers whose cells run compiled: the same call, the same parameters, the same results."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np

from ..functional import stack
from ..module import Module
from ..nn.cells import Cell
from ..nn.noise import Noise, Zoneout
from ..nn.reading import DIRECTIONS, Input, cut
from ..nn.recompute import Runner, segmented
from ..nn.recurrent import Recurrent, check_mask, check_step
from ..nn.states import State, fill, first_of, keep_past_end, leaves, name_parts, zero_past_end
from ..scope import ALWAYS, NEEDED, Mask, masked, scope
from ..tensor import Parameter, Tensor
from . import numba_backend, passes, rows
from .errors import CompileError
from .numpy_backend import Kernels
from .outside import PLAIN, Outside
from .passes import Schedule
from .repeat import Repeat, key_of, repeats
from .tape import Run, loop, output, unroll
from .trace import Program, Request, trace

_KEPT = 32  # programs of a layer


class CompileWarning(UserWarning):
    """A layer that was to run compiled runs unrolled."""


class Compiled(Recurrent):
    """What a compiled layer adds to the class of the layer."""

    _compiler: Compiler

    def __reduce__(self) -> tuple[Any, ...]:  # pickle does not know the class, which was made here
        held = {name: value for name, value in vars(self).items() if name != "_compiler"}
        return _restored, (type(self).__bases__[1], held, self._compiler.backend,
                           self._compiler.threads)  # fmt: skip

    def forward(self, x: Any = None, state: State = None, **words: Any) -> Any:
        """Run the cells over a sequence: as the layer's own ``forward``, and with its arguments."""
        if not words and isinstance(x, Tensor):
            here = scope()
            known = self._compiler.calls.get(key_of(x, here, self))
            if known is not None and known.holds():
                starts = known.begin(state)
                if starts is not None:
                    self._compiler.plan, self._compiler.used = known.plan, known.kernels
                    return known.run(x, starts, here)
        return super().forward(x, state, **words)

    def _runner(self, T: int, trace: bool) -> Runner | None:
        here = scope()
        if here.mode == ALWAYS or here.frozen is not None:  # all nodes are wanted
            return super()._runner(T, trace)
        every = None if trace else self._segment(T)
        if every is None:
            return partial(self._compiler.run, self)
        return partial(self._compiler.run_segments, self, every)

    @property
    def plan(self) -> Schedule | None:
        """The schedule of the last call: what runs before, inside and after the loop."""
        return self._compiler.plan

    def report(self) -> str:
        """Return what became of the steps of the last call, in words."""
        return self._compiler.report()


class Compiler:
    """What a compiled layer remembers: programs, schedules, and why it could not."""

    def __init__(self, backend: str | None = None, threads: int | None = None) -> None:
        self.backend, self.threads = backend, threads
        self.without_numba = ""  # why not numba
        self.used: Any = None  # the functions of the last call
        self.programs: dict[Any, Any] = {}  # and the parameters, or why there is none
        self.outsides: dict[int, Outside] = {}  # what the steps of the cells read besides them
        self.kernels: dict[Any, tuple[Schedule, Any]] = {}
        self.calls: dict[Any, Repeat] = {}
        self.plan: Schedule | None = None
        self.reasons: dict[str, str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiler:
        return Compiler(self.backend, self.threads)

    # --- running

    def run(
        self, layer: Recurrent, cell: Cell, unrolled: Any, x: Any, state: State, direction: str,
        given: Input,
    ) -> tuple[Any, State]:  # fmt: skip
        """Run all steps of one cell compiled, or unrolled where that cannot be."""
        place = "L{}.{}".format(*unrolled.keywords["place"][1:])
        given_types = [t.dtype.kind for t in [*leaves(state), *([] if x is None else [x])]]
        try:
            if "c" not in given_types:  # complex steps are for checks
                made = self._run(layer, cell, unrolled, x, state, direction, given)
                self.reasons.pop(place, None)
                return made
        except CompileError as reason:
            if self.reasons.get(place) != str(reason):
                self.reasons[place] = str(reason)
                warnings.warn(
                    f"{type(layer).__name__} {place}: {type(cell).__name__} runs unrolled: "
                    f"{reason}",
                    CompileWarning,
                    stacklevel=5,
                )
        outputs, final = unrolled([None] * given.steps if x is None else cut(x), state)
        return stack(outputs), final

    def run_segments(
        self, layer: Recurrent, every: int, cell: Cell, unrolled: Any, x: Any, state: State,
        direction: str, given: Input,
    ) -> tuple[Any, State]:  # fmt: skip
        """Run `every` steps at a time compiled, and again for their gradients."""

        def piece(steps: list[Any], state: State, start: int) -> tuple[list[Any], State]:
            T = len(steps)
            valid = None if given.valid is None else given.valid[start : start + T]
            part = given._replace(steps=T, valid=valid)
            x = None if steps[0] is None else stack(steps)
            loop = partial(unrolled, start=start)
            out, final = self.run(layer, cell, loop, x, state, direction, part)
            return list(out), final

        return segmented(cell, piece, x, state, direction, given, every)

    def _run(
        self, layer: Recurrent, cell: Cell, unrolled: Any, x: Any, state: State, direction: str,
        given: Input,
    ) -> tuple[Any, State]:  # fmt: skip
        noise: Noise = unrolled.keywords["noise"]
        traced = unrolled.keywords["traced"]
        place = unrolled.keywords["place"]
        parts = leaves(state)
        dtype = cell.dtype
        if any(t.dtype != dtype for t in [*parts, *([] if x is None else [x])]):
            raise CompileError(f"x or the state is not {dtype}, as the cell is")
        if noise.zoneout and noise.seed is not None:
            raise CompileError("zoneout draws anew at each step")
        mask = noise.recurrent_mask(first_of(state), place[1], DIRECTIONS.index(place[2]))
        program, named = self._program(
            cell, x, state, given, mask, noise.zoneout, traced is not None
        )
        marks = program.marks if traced is not None else {}
        for name, v in marks.items():
            if v.role != "rows":
                raise CompileError(f"the mark {name} has no axis of the batch{v.line}")
        inputs = [*([] if x is None else [x]), *parts, *[p for _, p in named]]
        backward = scope().mode == NEEDED and any(t.requires_grad for t in inputs)
        wanted = tuple([name for name, p in named if p.requires_grad]) if backward else ()
        x_grad = backward and x is not None and x.requires_grad
        key = id(program), backward, wanted, x_grad, traced is not None
        if key not in self.kernels:
            _limit(self.kernels)
            self.kernels[key] = self._build(program, x_grad, wanted, backward, traced is not None)
        plan, kernels = self.kernels[key]
        self.plan, self.used = plan, kernels
        inside = None
        if given.valid is not None:
            inside = np.ascontiguousarray(given.valid).reshape(given.steps * given.batch, 1)
        run = Run(
            plan, kernels, given.steps, given.batch, direction == DIRECTIONS[1], x is not None,
            [name for name, _ in named], inside, None if mask is None else mask.data,
            partial(unroll, unrolled, state, given.steps),
        )  # fmt: skip
        if x is not None and given.valid is None and traced is None and not given.unbatched:
            self._remember(layer, cell, x, state, plan, kernels, named)
        token: Any = loop(*inputs, run=run)
        read = partial(token.__record__, output, token, ())
        y: Any = read({"run": run, "key": "y"})
        final = fill(state, [read({"run": run, "key": k}) for k in range(len(parts))])
        name_parts(final, cell.states)
        for name in marks:
            value: Any = read({"run": run, "key": f"mark.{name}"})
            if given.valid is not None and value.ndim > 2:
                value = zero_past_end(value, given.valid)
            traced[f"L{place[1]}.{place[2]}.{name}"] = value
        return y, final

    def _remember(
        self, layer: Recurrent, cell: Cell, x: Tensor, state: State, plan: Schedule, kernels: Any,
        named: list[tuple[str, Parameter]],
    ) -> None:  # fmt: skip
        """Keep what a call like this one need not find out again."""
        key = key_of(x, scope(), layer)
        known = self.calls.get(key)
        if key is None or (known is not None and known.holds()):
            return
        start = cell.first_state(x.shape[1])
        if repeats(layer, type(layer).__bases__[1], cell, [*leaves(state), *leaves(start)]):
            _limit(self.calls)
            outside = self.outsides[id(cell)]
            self.calls[key] = Repeat(layer, cell, start, outside, plan, kernels, named)

    def _build(
        self, program: Program, x_grad: bool, wanted: tuple[str, ...], backward: bool, traced: bool
    ) -> tuple[Schedule, Any]:
        """Return the schedule and the functions of the best back end that can run it."""
        words: Any = {"x_grad": x_grad, "parameters": wanted, "backward": backward,
                      "traced": traced}  # fmt: skip
        if self.backend != "numpy" and numba_backend.available():
            try:
                plan = passes.schedule(program, fuse=True, **words)
                return plan, numba_backend.Kernels(plan, self.threads)
            except (CompileError, ImportError) as reason:  # or what is installed does not load
                self.without_numba = str(reason)
        plan = passes.schedule(program, **words)
        return plan, Kernels(plan)

    def _program(
        self,
        cell: Cell,
        x: Any,
        state: State,
        given: Input,
        mask: Any,
        zoneout: Zoneout,
        traced: bool,
    ) -> tuple[Program, list[tuple[str, Parameter]]]:
        """Return the program of a cell and its parameters, traced where it is new."""
        shapes = [(t.shape[1:], t.dtype) for t in leaves(state)]
        features = None if x is None else x.shape[2]
        inside = given.valid is not None
        rest = features, tuple(shapes), inside, mask is not None, zoneout, traced
        key = self._key(cell, rest)
        known = self.programs.get(key)
        if known is None:
            _limit(self.programs)
            self.outsides.pop(id(cell), None)  # its step may be another, which reads other things
            key = self._key(cell, rest)
            request = Request(
                cell, partial(_body, zoneout, traced), features, shapes, partial(fill, state),
                inside, None if mask is None else mask.shape[1:],
            )  # fmt: skip
            try:
                found: Any = trace(request)
                passes.common(found)
                rows.assign(found)
                for v in [found.y, *found.states]:
                    if v.role != "rows":
                        raise CompileError(
                            f"the output or the state has no axis of the batch{v.line}"
                        )
            except CompileError as reason:
                found = CompileError(str(reason))  # without the frames, which hold arrays
            except Exception as error:
                found = CompileError(f"its step failed with example values: {error}")
            held = [(module, dict(vars(module))) for module in _modules(cell)]  # so ids stay theirs
            names = [v.name for v in getattr(found, "values", ()) if v.leaf == "parameter"]
            by_name = dict(cell.named_parameters())
            named = [(name, by_name[name]) for name in names]  # as the back ends count them
            self.programs[key] = found, named, held
            known = self.programs[key]
        found, named, _ = known
        if isinstance(found, CompileError):
            raise CompileError(str(found))
        return found, named

    def _key(self, cell: Cell, rest: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what tells one program from another."""
        outside = self.outsides.get(id(cell))
        if outside is None:
            _limit(self.outsides)
            outside = self.outsides[id(cell)] = Outside(cell)
        return id(cell), _fingerprint(cell), outside(), *rest

    def report(self) -> str:
        """Return what became of the steps, in words."""
        lines = [f"{place}: runs unrolled: {why}" for place, why in self.reasons.items()]
        plan = self.plan
        if plan is None:
            return "\n".join(lines or ["not called yet"])
        sections = {
            "hoisted before the loop": plan.pre, "in the loop": plan.loop,
            "after the loop": plan.post, "back, before the loop": plan.back_pre,
            "back, in the loop": plan.back_loop, "sunk below the loop": plan.sink,
        }  # fmt: skip
        lines.append(f"back end: {self.used.name}")
        if self.used.name == "NumPy" and self.without_numba:
            lines.append(f"without numba: {self.without_numba}")
        for name, part in sections.items():
            lines.append(f"{name}: {len(part.values)}")
            lines += [f"    {v}" for v in part.values]
        lines.append("kept for the gradients: " + ", ".join([f"v{v.number}" for v in plan.kept]))
        lines += self.used.told()
        return "\n".join(lines)


def _limit(cache: dict[Any, Any]) -> None:
    while len(cache) >= _KEPT:
        cache.pop(next(iter(cache)))


def _body(
    zoneout: Zoneout, traced: bool, cell: Cell, x: Any, state: State, inside: Any, mask: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Run one step as ``Recurrent`` does, with all that it adds."""
    here = scope()
    marks: dict[str, Any] = {}
    here.marks = marks
    read = None if mask is None else Mask(mask)
    with masked(read):
        result = cell.step(x, state)
    check_step(cell, result, state)
    check_mask(cell, read)
    y, new = result
    if zoneout:
        kept = Noise(None, 0.0, zoneout).zone_out(new, state)
        y, new = first_of(kept) if y is first_of(new) else y, kept
    if inside is not None:
        new = keep_past_end(inside, new, state)
    return y, new, dict(marks) if traced else {}


def _fingerprint(cell: Cell) -> tuple[Any, ...]:
    """Return what tells a cell from itself with another setting."""
    return tuple(
        [
            (name, value if type(value) in PLAIN else _told(value))
            for module in _modules(cell)
            for name, value in vars(module).items()
            if name != "_called"
        ]
    )


def _told(value: Any) -> Any:
    """Return what changes when a setting does: its content, as far as it is known to have one."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Parameter):
        return id(value), value.requires_grad, value.shape
    if isinstance(value, Tensor):
        return id(value), value.requires_grad, _told(value.data)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, tuple | list):
        return type(value), tuple([_told(v) for v in value])
    if isinstance(value, dict):
        return tuple([(k, _told(v)) for k, v in value.items()])
    return id(value)


def _modules(cell: Cell) -> list[Module]:
    if any(isinstance(v, Module | list | tuple | dict) for v in vars(cell).values()):
        return [m for _, m in cell.named_modules()]
    return [cell]


_classes: dict[type, type] = {}


def _restored(
    kind: type[Recurrent], held: dict[str, Any], backend: str | None, threads: int | None
) -> Compiled:
    """Return the compiled layer that was pickled."""
    layer = object.__new__(kind)
    vars(layer).update(held)
    return compiled(layer, backend, threads)


def compiled(layer: Recurrent, backend: str | None = None, threads: int | None = None) -> Compiled:
    """Return a layer that shares everything with `layer` and runs compiled."""
    kind = type(layer)
    if issubclass(kind, Compiled):
        return layer  # type: ignore[return-value]
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (Compiled, kind), {"__module__": kind.__module__})
    twin: Any = object.__new__(_classes[kind])
    for name, value in vars(layer).items():
        object.__setattr__(twin, name, copy.copy(value) if isinstance(value, dict) else value)
    object.__setattr__(twin, "_compiler", Compiler(backend, threads))
    return twin  # type: ignore[no-any-return]
