"""Both loops over time as kernels: products with packed weights, the rest fused into passes.

A kernel works on a tile of the batch, some steps at a time: first what does not need the state
before, for all these steps at once; then step by step what does; then what only reads what the
steps made.  Values that depend on each other element by element and have as many features make one
pass over memory; a value is written there only if something outside the pass reads it.  A pass and
the products and sums beside it make a level; levels follow each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import ops
from .errors import CompileError
from .known import check, columns_of, features, view
from .rows import ELEMENTWISE, VIEWS
from .trace import Value

ALWAYS = ("product_at", "T", "N", "r0", "r1", "k0", "k1", "part", "reverse", "steps")
EARLY, STEP, LATE = range(3)  # the stages of a kernel

_WORDS = {
    ops.add: "{0} + {1}", ops.sub: "{0} - {1}", ops.mul: "{0} * {1}", ops.div: "{0} / {1}",
    ops.neg: "-{0}", ops.exp: "exp({0})", ops.log: "log({0})", ops.tanh: "tanh({0})",
    ops.sigmoid: "sigmoid({0})", ops.sqrt: "math.sqrt({0})", ops.abs: "abs({0})",
    ops.pow: "{0} ** {1}", ops.where: "{1} if {0} else {2}", ops.less: "{0} < {1}",
    ops.less_equal: "{0} <= {1}", ops.greater: "{0} > {1}", ops.greater_equal: "{0} >= {1}",
    ops.equal: "{0} == {1}", ops.not_equal: "{0} != {1}",
    ops.maximum: "{0} if {0} > {1} or {0} != {0} else {1}",
    ops.minimum: "{0} if {0} < {1} or {0} != {0} else {1}",
    ops.astype: "{type}({0})",
}  # fmt: skip


@dataclass(slots=True)
class Place:
    """Where a value lies: element j of row n is ``array[row * width + offset + n * width + j]``.

    `row` is the first row, in the words of the kernel: f counts the rows of all steps, z those of
    these steps, r0 those of the batch.  Shared values have a width of 0, numbers a step of 0.
    """

    array: str
    row: str
    width: int
    offset: int = 0
    step: int = 1
    base: str = ""  # where its part of the array begins

    def first(self) -> str:
        """Return the index of the first element of the first row."""
        row = f"({self.row}) * {self.width}" if self.width else self.row
        terms = [self.base, row if self.row != "0" else ""]
        return " + ".join([t for t in terms if t]) or "0"


class Body:
    """A pass over rows, a function of its own: its arrays do not overlap."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = ["for n in range(rows):"]
        self.flags = "'contract'"
        self.arrays: dict[tuple[str, str], tuple[str, str]] = {}  # what is passed, by place

    def at(self, place: Place, j: str) -> str:
        """Return element `j` of row `n` at a place."""
        k = len(self.arrays)
        array, first = self.arrays.setdefault((place.array, place.first()), (f"a{k}", f"o{k}"))
        terms = [first]
        if place.width:
            terms.append(f"n * U({place.width})")
        if place.offset:
            terms.append(f"U({place.offset})")
        if place.step:
            terms.append(j)
        return f"{array}[{' + '.join(terms)}]"

    def each(self, k: int, lines: Iterable[str]) -> Body:
        """Add lines that run for each of `k` features."""
        self.lines += [f"    for j in range(U({k})):", *[f"        {line}" for line in lines]]
        return self

    def source(self) -> str:
        """Return the function."""
        names = [name for pair in self.arrays.values() for name in pair]
        head = (
            f"@njit(nogil=True, error_model='numpy', fastmath={{{self.flags}}}, "
            f"pipeline_class=Apart)\n"
            f"def {self.name}({', '.join(['rows', *names])}):\n"
        )
        return head + "".join([f"    {line}\n" for line in self.lines])

    def call(self) -> str:
        """Return its call."""
        passed = [f"{array}, U({first})" for array, first in self.arrays]
        return f"{self.name}({', '.join(['U(m)', *passed])})"


class Kernel:
    """The kernel of one direction in time.

    Parameters
    ----------
    name : str
        What its functions are called.
    stages : (list of Value, list of Value, list of Value)
        What is computed before, in and after the steps.
    places : dict of Value to Place
        Where leaves, values from outside and values that are wanted outside lie.
    copies : list of (stage, Value or None, Place)
        What is copied at the end of a stage; None: zeros.
    sums : dict of Value to int
        Sums over all rows, and where in a tile's part they lie, which begins at `sums_at`.
    back : bool
        Whether it runs back through time.
    """

    def __init__(
        self, name: str, stages: Sequence[list[Value]], places: dict[Value, Place],
        copies: list[tuple[int, Value | None, Place]], sums: dict[Value, int], back: bool,
        dtype: np.dtype[Any], sums_at: Place | None = None,
    ) -> None:  # fmt: skip
        for v in [v for stage in stages for v in stage]:
            if v not in sums:
                check(v)
        self.name, self.stages, self.back = name, stages, back
        self.places, self.copies, self.sums = dict(places), copies, sums
        self.total = sum([features(s.inputs[0]) for s in sums])
        self.sums_at = sums_at or Place("", "0", 0)
        self.real, self.dtype = f"np.{dtype.name}", dtype
        self.arguments: dict[str, None] = {}
        self.packed: dict[Value, int] = {}  # weights, and where they begin in the array P
        self.packs = 0  # the size of P
        self.scratch: dict[str, tuple[bool, int, str]] = {}  # for all these steps, width, type
        self.bodies: list[Body] = []
        self.joins: dict[Value, list[tuple[Value, int]]] = {}  # concats that a value is a part of
        self.base = {v: view(v) for stage in stages for v in stage if v.op in VIEWS}
        self.home = {v: k for k, stage in enumerate(stages) for v in stage if v.op not in VIEWS}
        self.far = {
            self.inner(i) for k, stage in enumerate(stages) for v in stage for i in v.inputs
            if self.home.get(self.inner(i), k) != k
        }  # fmt: skip
        self.flat = True  # whether steps of the whole batch may be taken as rows of one
        self.lines = [self._stage(k) for k in range(3)]

    def inner(self, v: Value) -> Value:
        """Return the value that lies in memory."""
        return self.base.get(v, (v, 0, 1))[0]

    # --- levels

    def _levels(self, values: list[Value]) -> dict[int, list[Value]]:
        inside, level = set(values), dict[Value, int]()
        levels: dict[int, list[Value]] = {}
        for v in values:
            if v.op in VIEWS:
                continue
            at = 0
            for i in v.inputs:
                inner, offset, step = self.base.get(i, (i, 0, 1))
                if inner not in inside:
                    continue
                plain = (
                    (v.op in ELEMENTWISE or v in self.sums) and inner.op in ELEMENTWISE
                    and not offset and step == 1 and features(inner) == features(i)
                    and (v in self.sums or features(v) == features(i))
                )  # fmt: skip
                at = max(at, level[inner] + (0 if plain or v.op is ops.concat else 1))
            level[v] = at
            levels.setdefault(at, []).append(v)
            if v.op is ops.concat:
                start = 0
                for i in v.inputs:
                    self.joins.setdefault(i, []).append((v, start))
                    start += features(i)
        return levels

    # --- places

    def place(self, v: Value) -> Place:
        """Return where a value lies, and take note that it does."""
        inner, offset, step = self.base.get(v, (v, 0, 1))
        if inner.role == "shared":
            name = f"s{inner.number}"
            k = features(inner) if inner.leaf != "parameter" or len(inner.shape) < 2 else 0
            place = Place(name, "0", 0, 0, 0 if k == 1 else 1)
        else:
            if inner not in self.places:
                if inner.op is None:  # scratch would be read before it is written
                    raise CompileError(f"a {inner.leaf} that passes through as it is runs on NumPy")
                name, k = f"z{inner.number}", features(inner)
                chunk = self.home[inner] != STEP or inner in self.far
                self.scratch[name] = chunk, k, inner.dtype.name
                self.places[inner] = Place(name, "z" if chunk else "0", k)
            place = self.places[inner]
        if place.row == "r0" and self._now != STEP:  # such rows do not go on from step to step
            self.flat = False
        if not place.array.startswith("z"):
            self.arguments[place.array] = None
        return replace(place, offset=place.offset + offset, step=place.step * step)

    def body(self) -> Body:
        """Return a new pass."""
        self.bodies.append(Body(f"{self.name}_{len(self.bodies)}"))
        return self.bodies[-1]

    def load(self, body: Body, v: Value, k: int, j: str = "j") -> str:
        """Return the element j of a value, as a pass of `k` features reads it."""
        if v.leaf == "constant" and v.array.size == 1:
            number = v.array.reshape(-1)[0]
            if v.dtype == bool:
                return str(bool(number))
            if np.isfinite(number):
                return f"{self.real}({float(number)!r})"
            if v.role == "shared":
                self.arguments[f"s{v.number}"] = None
                return body.at(Place(f"s{v.number}", "0", 0, 0, 0), j)
        if v.leaf == "constant" and v.role == "rows":
            raise CompileError("a constant with an axis of the batch runs on NumPy")
        place = self.place(v)
        if features(v) == 1 and k != 1:
            place.step = 0
        return body.at(place, j)

    def total_of(self, s: Value) -> Place:
        """Return where a tile sums over its rows."""
        self.arguments[self.sums_at.array] = None
        return replace(self.sums_at, offset=self.sums[s])

    # --- source

    def _stage(self, k: int) -> list[str]:
        """Return the lines of a stage: calls of passes, products and sums."""
        self._now = k
        lines: list[str] = []
        values = self.stages[k]
        levels = self._levels(values)
        for level in sorted(levels):
            passes: dict[int, list[Value]] = {}
            others: list[Value] = []
            for v in levels[level]:
                if v.op in ELEMENTWISE:
                    passes.setdefault(features(v), []).append(v)
                else:
                    others.append(v)
            fused = {v for v in others if v in self.sums and v.inputs[0] in levels[level]}
            for v in others:
                if v.op is not ops.concat and v not in fused:
                    lines.append(self._other(v))
            for width, chosen in passes.items():
                lines.append(self._pass(width, chosen, fused))
            for v in others:
                if v.op is ops.concat:
                    lines += self._concat(v)
        return lines + self._copies([(v, to) for stage, v, to in self.copies if stage == k])

    def _copies(self, pairs: list[tuple[Value | None, Place]]) -> list[str]:
        """Return the calls of passes that copy values to places, or zeros where there is none."""
        first: list[str] = []  # what the copies would lose is put aside before them
        then: list[str] = []
        last: list[str] = []
        written = {place.array for _, place in pairs}
        for v, place in pairs:
            self.arguments[place.array] = None
            copy, k = self.body(), place.width
            if v is None:
                then.append(copy.each(k, [f"{copy.at(place, 'j')} = {self.real}(0.0)"]).call())
                continue
            aside = v.leaf != "constant" and self.place(v).array in written
            if aside:
                name = f"z_{place.array}"
                self.scratch[name] = False, k, v.dtype.name
                between, back = Place(name, "0", k), self.body()
                moved = f"{back.at(place, 'j')} = {back.at(between, 'j')}"
                last.append(back.each(k, [moved]).call())
                place = between
            line = f"{copy.at(place, 'j')} = {self.load(copy, v, k)}"
            (first if aside else then).append(copy.each(k, [line]).call())
        return first + then + last

    def source(self) -> str:
        """Return the source of the passes and of the function of a tile."""
        early, step, late = self.lines
        head = [
            *[b.source() for b in self.bodies],
            "@njit(cache=True, nogil=True, error_model='numpy', fastmath={'contract'})",
            f"def {self.name}_tile({', '.join([*ALWAYS, *self.arguments])}):",
            "    p = 1 if reverse else 0",
            "    q = 1 - p",
            "    rows, R = r1 - r0, T * N",
        ]
        if self.sums:
            start = f"{self.sums_at.array}[{self.sums_at.first()} + j] = 0"
            head += [
                "    if k0 == 0:",
                f"        for j in range({self.total}):",
                f"            {start}",
            ]
        for name, (chunk, k, dtype) in self.scratch.items():
            dtype = {"bool": "bool_"}.get(dtype, dtype)
            count = "steps * rows" if chunk else "rows"
            head.append(f"    {name} = np.empty({count} * {k}, np.{dtype})")
        down = "not reverse" if self.back else "reverse"
        head += [
            "    for a in range(k0, k1, steps):",
            "        b = min(k1, a + steps)",
            f"        t0 = T - b if {down} else a",
            *self._rows(early),
            "        m = rows",
            "        for k in range(a, b):",
            f"            t = T - 1 - k if {down} else k",
            "            f, z = t * N + r0, (t - t0) * rows",
            *[f"            {line}" for line in step],
            *self._rows(late),
        ]
        return "\n".join(head) + "\n"

    def _rows(self, lines: list[str]) -> list[str]:
        """Return the lines of a stage that takes all these steps at once where it can."""
        if not lines:
            return []
        whole = "rows == N" if self.flat else "False"
        return [
            f"        whole = {whole}",
            "        m = (b - a) * N if whole else rows",
            "        for k in range(1 if whole else b - a):",
            "            f, z = (t0 + k) * N + r0, k * rows",
            *[f"            {line}" for line in lines],
        ]

    def _pass(self, k: int, values: list[Value], sums: set[Value]) -> str:
        """Write one pass over the rows: `values` of `k` features each, and sums of them."""
        own = set(values)
        body = self.body()
        lines = []
        loaded: dict[str, str] = {}

        def read(i: Value) -> str:
            inner, offset, step = self.base.get(i, (i, 0, 1))
            if inner in own and not offset and step == 1:
                return f"x{inner.number}"
            text = self.load(body, i, k)
            if text.startswith(("np.", "True", "False")):
                return text
            if text not in loaded:
                loaded[text] = f"y{len(loaded)}"
                lines.append(f"{loaded[text]} = {text}")
            return loaded[text]

        for v in values:
            assert v.op is not None
            args = [read(i) for i in v.inputs]
            kind = "np.bool_" if v.dtype == bool else f"np.{v.dtype.name}"
            lines.append(f"x{v.number} = " + _WORDS[v.op].format(*args, type=kind))
            if v in self.places or self._is_read(v, own):
                lines.append(f"{body.at(self.place(v), 'j')} = x{v.number}")
            for whole, at in self.joins.get(v, []):
                place = self.place(whole)
                place.offset += at
                lines.append(f"{body.at(place, 'j')} = x{v.number}")
            for s in sums:
                if s.inputs[0] is v:
                    lines.append(f"{body.at(self.total_of(s), 'j')} += x{v.number}")
        return body.each(k, lines).call()

    def _is_read(self, v: Value, own: set[Value]) -> bool:
        """Return whether something outside its pass reads a value from memory."""
        if any(w is not None and self.inner(w) is v for _, w, _ in self.copies):
            return True
        every = [w for stage in self.stages for w in stage if w.op not in VIEWS]
        for w in every:
            if w.op is ops.concat and self.home[w] == self.home[v]:  # its pass writes it there,
                if any(i is not v and self.inner(i) is v for i in w.inputs):  # but not a view of it
                    return True
                continue
            if w in self.sums and w.inputs[0] is v and self.home[w] == self.home[v]:
                continue
            for i in w.inputs:
                inner, offset, step = self.base.get(i, (i, 0, 1))
                if inner is v and (w not in own or offset or step != 1):
                    return True
        return False

    def _concat(self, v: Value) -> list[str]:
        """Write the parts of a concat that no pass has written there."""
        lines, at = [], 0
        for i in v.inputs:
            if i.op not in ELEMENTWISE or self.home.get(i) != self.home[v]:
                place = self.place(v)
                place.offset += at
                k, body = features(i), self.body()
                moved = f"{body.at(place, 'j')} = {self.load(body, i, k)}"
                lines.append(body.each(k, [moved]).call())
            at += features(i)
        return lines

    def _other(self, v: Value) -> str:
        """Write a product, a sum or what else is no pass."""
        if v.op is ops.matmul:
            return self._product(v)
        a, body = v.inputs[0], self.body()
        width = features(a)
        if v in self.sums:
            total = body.at(self.total_of(v), "j")
            return body.each(width, [f"{total} += {self.load(body, a, width)}"]).call()
        out, lines = self.place(v), body.lines
        if v.op is ops.sum:
            body.flags += ", 'reassoc', 'nsz'"
            lines.append(f"    total = {self.real}(0.0)")
            body.each(width, [f"total += {self.load(body, a, width)}"])
            lines.append(f"    {body.at(out, 'U(0)')} = total")
        elif v.op is ops.max:
            load = self.load(body, a, width)
            lines.append(f"    top = {self.load(body, a, width, 'U(0)')}")
            body.each(width, [f"if {load} > top or {load} != {load}:", f"    top = {load}"])
            lines.append(f"    {body.at(out, 'U(0)')} = top")
        else:  # scatter
            body.each(features(v), [f"{body.at(out, 'j')} = {self.real}(0.0)"])
            for part, index in zip(v.inputs, v.attrs["index"], strict=True):
                columns = columns_of(index)
                assert columns is not None
                place, n = self.place(v), features(part)
                place.offset += columns.indices(features(v))[0]
                body.each(n, [f"{body.at(place, 'j')} += {self.load(body, part, n)}"])
        return body.call()

    def _product(self, v: Value) -> str:
        x, w = v.inputs
        inner, columns = w.shape
        assert inner is not None
        assert columns is not None
        if w not in self.packed:
            from .products import packed_size  # needs numba

            self.packed[w] = self.packs
            self.packs += packed_size(inner, columns, self.dtype)
            self.arguments[f"w{w.number}"] = self.arguments["P"] = None
        given, made = self.place(x), self.place(v)
        return (
            f"product(product_at, m, {inner}, {columns}, "
            f"{given.array}, {given.first()} + {given.offset}, "
            f"{given.width}, P, {self.packed[w]}, {made.array}, {made.first()} + {made.offset}, "
            f"{made.width})"
        )
