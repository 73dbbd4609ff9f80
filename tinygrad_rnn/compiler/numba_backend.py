"""The back end for speed: numba kernels for both directions in time; NumPy for what they lack."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import ops
from . import numpy_backend
from .fused import STEP, Kernel, Place
from .known import features, is_known, is_outer, sums_rows, view
from .numpy_backend import Writer
from .passes import Schedule, Section
from .rows import VIEWS
from .threads import cpus, run
from .trace import Value

_WORTH = 1 << 15  # numbers of a state over all steps; fewer take less than a thread's start
_NEAR = 1 << 16  # numbers that steps taken together may need for what they compute
_SMALL = 1 << 19  # bytes of weights that stay in a core's cache
_SOON = 1e11  # operations until a call looks for Ctrl-C again


WHOLE = "pack_at, product_at, outer_at, T, N, rows, reverse, steps, k0, k1, part, parts"


def available() -> bool:
    """Return whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


class Kernels(numpy_backend.Kernels):
    """The forward and the backward of a schedule."""

    name = "numba"

    def __init__(self, schedule: Schedule, threads: int | None = None) -> None:
        self.threads = cpus() if threads is None else threads
        from .products import addresses

        writer = FusedWriter(schedule)
        self.at = addresses(writer.dtype)
        self.make(writer, {"go": self.go})
        names = [
            f"{k.name}{end}" for k in writer.kernels for end in ("", "_begin", "_tile", "_end")
        ]
        module = _load("\n".join(writer.functions))
        self.functions = {name: getattr(module, name) for name in names}
        self.made = {
            k.name: f"{len(k.bodies)} passes, {k.packs} packed weights" for k in writer.kernels
        }
        self._known: dict[tuple[str, int, int], tuple[int, int, int, int]] = {}
        self.sizes = {kernel.name: _sizes(kernel) for kernel in writer.kernels}

    def told(self) -> list[str]:
        """Return, for each direction, what was fused, and how the last shapes were cut up."""
        lines = [f"{name}: {made}" for name, made in self.made.items()]
        for (name, T, N), (rows, steps, threads, _) in list(self._known.items())[-2:]:
            lines.append(
                f"{name}, T={T}, N={N}: tiles of {min(N, rows)} sequences, "
                f"{steps} steps at a time, on at most {threads} threads"
            )
        return lines

    def go(self, name: str, T: int, N: int, reverse: bool, *arguments: Any) -> None:
        """Run a kernel: on this thread in one call, or its tiles beside each other."""
        rows, steps, threads, once = self.how(name, T, N)
        if threads == 1 and once >= T:
            self.functions[name](*self.at, T, N, rows, reverse, steps, 0, T, 0, 1, *arguments)
            return
        begin, tile, end = [self.functions[f"{name}_{k}"] for k in ("begin", "tile", "end")]
        begin(self.at.pack, *arguments)
        starts = range(0, N, rows)
        for k in range(0, T, once):
            last = min(T, k + once)
            tasks = [
                partial(tile, self.at.product, T, N, r0, min(N, r0 + rows), k, last, part, reverse,
                        steps, *arguments)
                for part, r0 in enumerate(starts)
            ]  # fmt: skip
            run(tasks, threads)
        parts = max(threads, T // once)
        run([partial(end, self.at.outer, T, N, reverse, len(starts), part, parts, *arguments)
             for part in range(parts)], threads)  # fmt: skip

    def how(self, name: str, T: int, N: int) -> tuple[int, int, int, int]:
        """Return rows of a tile, steps taken together, threads, and steps of one call."""
        known = self._known.get((name, T, N))
        if known is None:
            weights, near, cost, state = self.sizes[name]
            rows = _tile(N, weights)
            steps = max(1, min(T, _NEAR // (rows * near)))
            threads = self.threads if T * N * state > _WORTH else 1
            once = max(1, int(_SOON / cost) // (N * steps)) * steps
            known = self._known[name, T, N] = rows, steps, threads, once
        return known


def _tile(N: int, weights: int) -> int:
    """Return how many rows a tile has: few, where the weights stay in the cache beside them."""
    if weights <= _SMALL:
        return 8
    tiles = -(-N // 32)
    return -(-N // (8 * tiles)) * 8


def _sizes(kernel: Kernel) -> tuple[int, int, float, int]:
    """Return bytes of weights, numbers a row of steps taken together, operations, features."""
    weights = sum([_numbers(w) for w in kernel.packed])
    near = sum([k for chunk, k, _ in kernel.scratch.values() if chunk])
    every = [v for stage in kernel.stages for v in stage if v.role == "rows"]
    widest = max([features(v) for v in every], default=1)
    return 4 * weights, max(near, 1), 4.0 * weights + 100.0 * widest, widest


def _numbers(w: Value) -> int:
    m, n = w.shape
    assert m is not None
    assert n is not None
    return m * n


def _load(text: str) -> Any:
    from .cache import load

    head = (Path(__file__).parent / "prelude.py").read_text(encoding="utf-8")
    return load(head + "\n\n" + text)


# --- what the kernels leave to NumPy -----------------------------------------------------------


def _before(values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Return what NumPy computes before a kernel, with what that needs, and the kernel's own."""
    apart = {v for v in values if not is_known(v)}
    for v in reversed(values):
        if v in apart:
            apart.update(v.inputs)
    return [v for v in values if v in apart], [v for v in values if v not in apart]


def _after(values: Sequence[Value], strange: set[Value]) -> tuple[list[Value], list[Value]]:
    """Return what a kernel computes after its steps, and what reads `strange` values or is left."""
    apart: dict[Value, None] = {}
    for v in values:
        outer = is_outer(v)
        inputs = (v.inputs[0].inputs[0], v.inputs[1]) if outer else v.inputs
        if not is_known(v) or any(i in apart or i in strange for i in inputs):
            apart[v] = None
    read = {i for v in apart for i in v.inputs}
    left = [v for v in apart if v.role != "columns" or v in read]
    return [v for v in values if v not in apart], left


def _near(steps: Sequence[Value], late: Sequence[Value]) -> list[Value]:
    """Return what joins or sums what the steps make, which is best done while that is at hand."""
    made = {v for v in steps if v.op not in VIEWS}
    near = []
    for v in late:
        if (v.op is ops.concat or sums_rows(v)) and made.issuperset(v.inputs):
            near.append(v)
            made.add(v)
    return near


# --- the source of both directions -------------------------------------------------------------


class FusedWriter(Writer):
    """Writes the kernels, and for NumPy what is around them.

    Beside the names of `Writer`, f is a value of all steps in one flat array.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.dtype = schedule.program.y.dtype
        self.kernels: list[Kernel] = []
        self.functions: list[str] = []
        self.made: dict[Value, str] = {}  # what lies in a flat array
        self.kept: dict[Value, Place] = {}  # where the forward left what the backward reads

    def begin(self, sections: Sequence[Section], stages: Sequence[list[Value]],
              others: Sequence[Value]) -> None:  # fmt: skip
        """Bind leaves and shared values, but for those that only a kernel reads."""
        self.made = {}
        program = self.plan.program
        apart = {i for v in others for i in v.inputs} | {program.y, *program.marks.values()}
        weights: set[Value] = set()
        read = set(apart)
        for v in [v for stage in stages for v in stage]:
            first, *rest = v.inputs
            read.add(first)
            (weights if v.op is ops.matmul else read).update(rest)
        needless = {w for w in weights - read if _origin(w) is not w}
        needless |= {v for v in program.values if v.leaf == "state" and v not in apart}
        self.head(sections, needless)

    def outside(self, places: dict[Value, Place], stages: Sequence[list[Value]],
                more: Iterable[Value]) -> None:  # fmt: skip
        """Bind what a kernel reads from outside, and add where it lies."""
        own = {v for stage in stages for v in stage}
        read = [i for stage in stages for v in stage for i in v.inputs]
        for v in dict.fromkeys([*read, *more]):
            if v in own or v in places or v.role != "rows" or v.leaf == "constant":
                continue
            name, k = f"f{v.number}", features(v)
            if v.leaf == "state":
                places[v] = Place(f"S{v.name}", "f + p * N", k)
            elif v.leaf == "mask":
                self.put(f"{name} = mask.ravel()")
                places[v] = Place(name, "r0", k)
            elif v in self.kept:
                places[v] = self.kept[v]
            else:
                self.put(f"{name} = w{v.number}.ravel()")
                places[v] = Place(name, "f", k)

    def bind(self, values: Sequence[Value]) -> None:
        """Bind, as arrays of rows, what NumPy reads of what lies flat."""
        for i in dict.fromkeys([i for v in values for i in v.inputs]):
            if i in self.made:
                self.put(f"w{i.number} = {self.whole(i)}")

    def whole(self, v: Value) -> str:
        """Return a value of all steps as an array of rows."""
        if v in self.made:
            return f"{self.made[v]}.reshape({self.shape(v, 'all')})"
        return self.ref(v, "all")

    def buffers(
        self, wanted: Iterable[Value], stages: Sequence[list[Value]], places: dict[Value, Place],
        block: str, apart: Collection[Value],
    ) -> tuple[list[tuple[int, Value | None, Place]], int]:  # fmt: skip
        """Make room for values of all steps, in one block or, `apart`, in arrays of their own.

        Returns which are copied there, being views, and how wide the block is.
        """
        copies: list[tuple[int, Value | None, Place]] = []
        width = 0
        for v in dict.fromkeys(wanted):
            stage = next((k for k, values in enumerate(stages) if v in values), None)
            if stage is None or v in places or v.role != "rows":
                continue
            k = features(v)
            if v in apart or v.dtype != self.dtype:
                self.put(f"f{v.number} = np.empty(R * {k}, {self.constant(v.dtype)})")
                self.made[v] = f"f{v.number}"
                place = Place(f"f{v.number}", "f", k)
            else:
                self.made[v] = f"{block}[R * {width} : R * {width + k}]"
                place = Place(block, "f", k, base=f"R * {width}")
                width += k
            if v.op in VIEWS:
                copies.append((stage, v, place))
            else:
                places[v] = place
            self.kept.setdefault(v, place)
        return copies, width

    # --- the two functions

    def forward(self) -> None:
        """Write the forward function."""
        plan, program = self.plan, self.plan.program
        marks = list(program.marks.values()) if plan.traced else []
        apart, early = _before(plan.pre.values)
        late, after = _after(plan.post.values, set())
        stages = early, plan.loop.values, late
        self.lines.append("def forward(T, N, reverse, x, S, parameters, inside, mask):")
        self.put("p, q = (1, 0) if reverse else (0, 1)")
        self.begin((plan.pre, plan.loop, plan.post), stages, [*apart, *after])
        for v in apart:
            self.compute(v, "all", None)
        places: dict[Value, Place] = {}
        moved: list[tuple[int, Value | None, Place]] = []
        for k, v in enumerate(program.states):
            self.put(f"S{k} = S[{k}].reshape(-1)")
            place = Place(f"S{k}", "f + q * N", features(v))
            if v in plan.loop.values and v.op not in VIEWS and v not in places:
                places[v] = place
                self.made[v] = f"S[{k}][q : q + T]"
            else:
                moved.append((STEP, v, place))
        read = [i for v in after for i in v.inputs]
        wanted, told = [*plan.kept, program.y, *marks, *read], {program.y, *marks, *read}
        copies, width = self.buffers(wanted, stages, places, "K", told)
        copies += moved
        self.put(f"K = np.empty(R * {width}, {self.constant(self.dtype)})")
        self.outside(places, stages, [view(v)[0] for _, v, _ in moved if v is not None])
        self.call(Kernel("step_forward", stages, places, copies, {}, False, self.dtype))
        self.bind(after)
        for v in after:
            self.compute(v, "all", None)
        self.apart = [v for v in plan.kept if v not in self.kept or self.kept[v].array != "K"]
        kept = "".join([f"{self.whole(v)}, " for v in self.apart])
        shown = "".join([f"{self.whole(v)}, " for v in marks])
        self.put(f"return {self.whole(program.y)}, ({shown}), (K, {kept})")

    def backward(self) -> None:
        """Write the backward function."""
        plan, program = self.plan, self.plan.program
        n = len(program.states)
        y_seed, *rest = program.seeds
        ends = [s for s in rest[:n] if s is not None]
        apart, early = _before(plan.back_pre.values)
        late, after = _after(plan.sink.values, set(ends))
        sums = [v for v in late if sums_rows(v)]
        outers = [v for v in late if is_outer(v)]
        late = [v for v in late if v not in outers]
        near = _near(plan.back_loop.values, late)
        late = [v for v in late if v not in near]
        stages = early, [*plan.back_loop.values, *near], late
        self.lines.append(
            "def backward(T, N, reverse, x, S, parameters, inside, mask, kept, gy, gends, gmarks):"
        )
        self.put("p = 1 if reverse else 0")
        self.begin((plan.back_pre, plan.back_loop, plan.sink), stages, [*apart, *after])
        self.put(f"K, {''.join([f'w{v.number}, ' for v in self.apart])} = kept")
        self.kept = {v: p for v, p in self.kept.items() if p.array == "K" and v in plan.kept}
        for v, kept in self.kept.items():
            self.made[v] = f"K[{kept.base} : {kept.base} + R * {kept.width}]"
        self.bind([*apart, *after])
        if y_seed is not None:
            self.put(f"w{y_seed.number} = gy")
        for k, seed in enumerate(rest[n:]):
            if seed is not None:
                self.put(f"w{seed.number} = gmarks[{k}]")
        for v in apart:
            self.compute(v, "all", None)
        places: dict[Value, Place] = {}
        moved: list[tuple[int, Value | None, Place]] = []
        for k, (seed, g) in enumerate(zip(rest[:n], program.state_grads, strict=True)):
            self.put(f"G{k} = gends[{k}].reshape(-1)")
            self.put(f"S{k} = S[{k}].reshape(-1)")
            place = Place(f"G{k}", "r0", features(program.states[k]))
            if seed is not None:
                places[seed] = place
            moved.append((STEP, g, place))
        x_grad = program.x_grad if plan.x_grad else None
        read = [i for v in after for i in v.inputs]
        pairs = [u for v in outers for u in (v.inputs[0].inputs[0], v.inputs[1])]
        wanted = [*read, *[view(u)[0] for u in pairs], *([] if x_grad is None else [x_grad])]
        apart = [*read, *([] if x_grad is None else [x_grad])]
        copies, width = self.buffers(wanted, stages, places, "B", apart)
        for s in ends:  # what arrives at each step
            if s in wanted:
                self.made[s] = f"f{s.number}"
                k = features(s)
                self.put(f"f{s.number} = np.empty(R * {k}, {self.constant(s.dtype)})")
                copies.append((STEP, s, Place(f"f{s.number}", "f", k)))
        copies += moved
        inner = [view(v)[0] for _, v, _ in moved if v is not None]
        self.outside(places, stages, [*inner, *[view(u)[0] for u in pairs]])
        at, begins = 0, {}
        for v in sums:
            begins[v] = at
            at += features(v.inputs[0])
        size = f"R * {width} + (N + 7) // 8 * {at}"  # tiles have 8 rows or more
        self.put(f"B = np.empty({size}, {self.constant(self.dtype)})")
        sums_at = Place("B", f"part * {at}", 0, base=f"R * {width}")
        kernel = Kernel("step_backward", stages, places, copies, begins, True, self.dtype, sums_at)
        self.call(kernel, outers)
        for v in sums:
            k = features(v.inputs[0])
            self.put(f"w{v.number} = total[{begins[v]}:{begins[v] + k}].reshape({v.shape})")
        self.bind(after)
        for v in after:
            self.compute(v, "all", None)
        gx = "None"
        if x_grad is not None:
            gx = self.whole(x_grad) if x_grad in late else f"np.array({self.whole(x_grad)})"
        own = {*sums, *outers}  # in arrays that nothing shares
        found = [self.gradient(program.parameter_grads[p], own) for p in plan.parameters]
        self.put(f"return {gx}, gends, ({''.join([f'{g}, ' for g in found])})")

    def gradient(self, v: Value, own: set[Value]) -> str:
        """Return the gradient of a parameter, copied unless it lies in one of `own` arrays."""
        root = v
        while root.op in (ops.reshape, ops.getitem):
            root = root.inputs[0]
        if root in own:
            own.remove(root)  # the gradient of one parameter only
            return self.whole(v)
        return f"np.array({self.whole(v)})"

    # --- the call

    def call(self, kernel: Kernel, outers: Sequence[Value] = ()) -> None:
        """Write the functions of a kernel, and its call with what it needs."""
        begin, end = self._packs(kernel), self._ends(kernel, outers)
        name, given = kernel.name, ", ".join(kernel.arguments)
        head = "@njit(cache=True, nogil=True, error_model='numpy')"
        self.functions += [
            kernel.source(),
            _function(head, f"{name}_begin(pack_at, {given})", begin),
            _function(
                head, f"{name}_end(outer_at, T, N, reverse, tiles, part, parts, {given})", end
            ),
            # literal numbers would make other types, and numba compile everything twice
            _function(head, f"{name}({WHOLE}, {given})", [
                f"{name}_begin(pack_at, {given})",
                "tiles = k0",
                "for r0 in range(k0, N, rows):",
                f"    {name}_tile(product_at, T, N, r0, min(N, r0 + rows), k0, k1, tiles, reverse,",
                f"               steps, {given})",
                "    tiles += 1",
                f"{name}_end(outer_at, T, N, reverse, tiles, part, parts, {given})",
            ]),
        ]  # fmt: skip
        self.kernels.append(kernel)
        self.put(f"go({name!r}, T, N, reverse, {given})")

    def _packs(self, kernel: Kernel) -> list[str]:
        """Bind shared values and weights; return the lines that pack the weights."""
        for name in kernel.arguments:
            if name.startswith("s"):
                leaf = any(name == f"s{p.number}" for p in self.parameters)
                self.put(f"{name} = {name}.ravel()" if leaf else f"{name} = np.ravel({name})")
        lines = []
        if kernel.packs:
            self.put(f"P = np.empty({kernel.packs}, {self.constant(self.dtype)})")
        for w, at in kernel.packed.items():
            source, (inner, columns) = _origin(w), w.shape
            strides = f"{columns}, 1" if source is w else f"1, {inner}"
            self.put(f"w{w.number} = np.ascontiguousarray(s{source.number})")
            lines.append(f"pack(pack_at, {inner}, {columns}, w{w.number}, 0, {strides}, P, {at})")
        return lines

    def _ends(self, kernel: Kernel, outers: Sequence[Value]) -> list[str]:
        """Make the arrays of sums over all rows; return the lines that finish them."""
        lines = ["p, R = 1 if reverse else 0, T * N"]
        if kernel.sums:
            self.put(f"total = np.empty({kernel.total}, {self.constant(self.dtype)})")
            kernel.arguments["total"] = None
            sums = f"{kernel.sums_at.array}[{kernel.sums_at.base} + "
            lines += ["if part == 0:", f"    for j in range({kernel.total}):",
                      f"        total[j] = {sums}j]", "    for tile in range(1, tiles):",
                      f"        for j in range({kernel.total}):",
                      f"            total[j] += {sums}tile * {kernel.total} + j]"]  # fmt: skip
        for v in outers:
            m, n = v.shape
            name = f"w{v.number}"
            self.put(f"{name} = np.empty(({m}, {n}), {self.constant(v.dtype)})")
            kernel.arguments[name] = None
            operands = []
            for u in (v.inputs[0].inputs[0], v.inputs[1]):
                inner, offset, _ = view(u)
                place = replace(kernel.places[inner], offset=offset)
                place.row = {"f": "0", "f + p * N": "p * N"}[place.row]
                kernel.arguments[place.array] = None
                operands.append(f"{place.array}, {place.first()} + {offset}, {place.width}")
            lines.append(
                f"outer(outer_at, T * N, {m}, {n}, {', '.join(operands)}, {name}, part, parts)"
            )
        return lines


def _function(head: str, name: str, lines: list[str]) -> str:
    return "\n".join([head, f"def {name}:", *[f"    {k}" for k in lines], "    return 0"]) + "\n"


def _origin(w: Value) -> Value:
    """Return the weights that `w` is the transpose of, or `w`."""
    if w.op is ops.transpose and w.role == "shared" and len(w.shape) == 2 and (
        w.attrs.get("axes") in (None, (1, 0))
    ):  # fmt: skip
        return w.inputs[0]
    return w
