"""The loop over time as one kernel: matrix products by BLAS, the rest fused into passes over rows.

Values that depend on each other element by element and have as many features make one pass over
memory; a value is written there only if something outside the pass reads it.  A pass and the
products and sums beside it make a level; levels follow each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .errors import CompileError
from .passes import Section
from .rows import ELEMENTWISE, VIEWS
from .trace import Value

ALWAYS = ("T", "N", "r0", "r1", "reverse", "BLAS")
LANES = 16  # partial sums of a row

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
    """Where a value lies: element j of row n is ``array[row * width + offset + j * step]``."""

    array: str
    row: str  # the row, as an expression in t and n; "" where all rows share
    width: int
    offset: int = 0
    step: int = 1

    def first(self) -> str:
        """Return the index of the first element of the tile's first row."""
        row = {"n - r0": "0", "": "0"}.get(self.row) or self.row.replace("+ n", "+ r0")
        return f"({row}) * {self.width}"


class Body:
    """A pass over the rows of a tile, a function of its own: its arrays do not overlap."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self.arrays: dict[tuple[str, str], tuple[str, str]] = {}  # what is passed, by place

    def at(self, place: Place, j: str) -> str:
        """Return element `j` of row `n` at a place."""
        first = place.first()
        k = len(self.arrays)
        array, offset = self.arrays.setdefault((place.array, first), (f"a{k}", f"o{k}"))
        terms = [offset]
        if place.row:
            terms.append(f"n * U({place.width})")
        if place.offset:
            terms.append(f"U({place.offset})")
        if place.step:
            terms.append(j)
        return f"{array}[{' + '.join(terms)}]"

    def source(self, real: str) -> str:
        """Return the function."""
        names = [name for pair in self.arrays.values() for name in pair]
        head = (
            f"@njit(nogil=True, error_model='numpy', fastmath={{'contract'}}, "
            f"pipeline_class=Apart)\n"
            f"def {self.name}({', '.join(['rows', *names])}):\n"
        )
        return head + "".join([f"    {line}\n" for line in self.lines])

    def call(self) -> str:
        """Return its call."""
        passed = [f"{array}, U({first})" for array, first in self.arrays]
        return f"{self.name}({', '.join(['U(r1 - r0)', *passed])})"


def features(v: Value) -> int:
    """Return how many numbers a row of `v` has; raise where it is no vector."""
    shape = v.shape[1:] if v.role == "rows" else v.shape
    if len(shape) > 1:
        if v.role == "shared" and len(v.shape) == 2 and v.shape[0] == 1:
            return int(v.shape[1])  # type: ignore[arg-type]
        raise CompileError(f"rows of shape {shape} run on NumPy")
    return math.prod([int(n) for n in shape if n is not None])


class Loop:
    """The kernel of one loop.

    Parameters
    ----------
    section : Section
        What each step computes.
    places : dict of Value to Place
        Where leaves, values from outside and values that are wanted outside lie.
    copies : list of (Value, Place)
        What is copied at the end of each step.
    """

    def __init__(
        self, name: str, section: Section, places: dict[Value, Place],
        copies: list[tuple[Value, Place]], back: bool, dtype: np.dtype[Any],
    ) -> None:  # fmt: skip
        self.name, self.section, self.back, self.dtype = name, section, back, dtype
        self.places, self.copies = dict(places), copies
        self.real = f"np.{dtype.name}"
        self.arguments: dict[str, None] = {}
        self.scratch: dict[str, tuple[int, str]] = {}
        self.level: dict[Value, int] = {}
        self.base: dict[Value, tuple[Value, int, int]] = {}  # of a view: value, offset, step
        self.bodies: list[Body] = []
        self.joins: dict[Value, list[tuple[Value, int]]] = {}  # concats that a value is a part of
        self._analyse()
        self.source = self._write()

    # --- levels

    def _view(self, v: Value) -> tuple[Value, int, int]:
        """Return what a view shows: a value, the first feature, and the step between features."""
        if v.op is None or v.op not in VIEWS or v.role == "shared":
            return v, 0, 1
        a = v.inputs[0]
        inner, offset, step = self._view(a)
        n, m = features(v), features(a)
        if v.op is ops.part and v.attrs["axis"] == 1:
            return inner, offset + step * v.attrs["start"], step
        if v.op is ops.broadcast and m == 1 and a.role == "rows":
            return inner, offset, 0
        if v.op is ops.broadcast and n == m:
            return inner, offset, step
        if v.op is ops.reshape and n == m and a.role == "rows":
            return inner, offset, step
        if v.op is ops.getitem:
            index = v.attrs["index"]
            index = index if isinstance(index, tuple) else (index,)
            slices = [i for i in index if i is not None and i is not Ellipsis]
            if n == m and all(i == slice(None) for i in slices):
                return inner, offset, step
            if len(slices) == 2 and slices[0] == slice(None) and isinstance(slices[1], slice):
                start, _, by = slices[1].indices(m)
                if by == 1:
                    return inner, offset + step * start, step
        raise CompileError(f"{v.op.name}({v.attrs}) runs on NumPy")

    def _analyse(self) -> None:
        inside = set(self.section.values)
        for v in self.section.values:
            if v.op in VIEWS:
                self.base[v] = self._view(v)
                self.level[v] = self.level.get(self.base[v][0], 0)
                continue
            level = 0
            for i in v.inputs:
                inner, offset, step = self.base.get(i, (i, 0, 1))
                if inner not in inside:
                    continue
                plain = (
                    v.op in ELEMENTWISE and inner.op in ELEMENTWISE and not offset and step == 1
                    and features(inner) == features(i) == features(v)
                )  # fmt: skip
                at = self.level[inner]
                if not plain:
                    at += 0 if v.op is ops.concat else 1
                level = max(level, at)
            self.level[v] = level
            if v.op not in ELEMENTWISE:
                self._check(v)
        for v in self.section.values:
            if v.op is ops.concat:
                at = 0
                for i in v.inputs:
                    self.joins.setdefault(i, []).append((v, at))
                    at += features(i)

    def _check(self, v: Value) -> None:
        op = v.op
        features(v)
        if op is ops.matmul:
            x, w = v.inputs
            if len(x.shape) == 2 and w.role == "shared" and len(w.shape) == 2:
                return
        elif op in (ops.sum, ops.max):
            axes = v.attrs.get("axis")
            axes = axes if isinstance(axes, tuple) else (axes,)
            if len(v.inputs[0].shape) == 2 and tuple([a % 2 for a in axes]) == (1,):
                return
        elif op is ops.concat:
            if all(len(i.shape) == 2 for i in v.inputs):
                return
        elif op is ops.scatter and (
            all(len(i.shape) == 2 for i in v.inputs)
            and all(_columns(i) is not None for i in v.attrs["index"])
        ):
            return
        raise CompileError(f"{op.name if op else ''} of {v.shape} runs on NumPy")

    # --- places

    def place(self, v: Value) -> Place:
        """Return where a value lies, and take note that it does."""
        inner, offset, step = self.base.get(v, (v, 0, 1))
        if inner.role == "shared":
            name = f"s{inner.number}"
            k = features(inner) if inner.leaf != "parameter" or len(inner.shape) < 2 else 0
            place = Place(name, "", 0, 0, 0 if k == 1 else 1)
        else:
            if inner not in self.places:
                if inner.op is None:  # scratch would be read before it is written
                    raise CompileError(f"a {inner.leaf} that passes through as it is runs on NumPy")
                name, k = f"z{inner.number}", features(inner)
                self.scratch[name] = k, inner.dtype.name
                self.places[inner] = Place(name, "n - r0", k)
            place = self.places[inner]
        if not place.array.startswith("z"):
            self.arguments[place.array] = None
        return Place(place.array, place.row, place.width, place.offset + offset, place.step * step)

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
                return body.at(Place(f"s{v.number}", "", 0, 0, 0), j)
        if v.leaf == "constant" and v.role == "rows":
            raise CompileError("a constant with an axis of the batch runs on NumPy")
        place = self.place(v)
        if features(v) == 1 and k != 1:
            place.step = 0
        return body.at(place, j)

    # --- source

    def _write(self) -> str:
        levels: dict[int, list[Value]] = {}
        for v in self.section.values:
            if v.op not in VIEWS:
                levels.setdefault(self.level[v], []).append(v)
        body: list[str] = []
        for k in sorted(levels):
            passes: dict[int, list[Value]] = {}
            others: list[Value] = []
            for v in levels[k]:
                if v.op in ELEMENTWISE:
                    passes.setdefault(features(v), []).append(v)
                else:
                    others.append(v)
            for v in others:
                if v.op is not ops.concat:
                    body += self._other(v)
            for width, values in passes.items():
                body += self._pass(width, values)
            for v in others:
                if v.op is ops.concat:
                    body += self._concat(v)
        for v, place in self.copies:
            self.arguments[place.array] = None
            copy = self.body()
            copy.lines += ["for n in range(rows):", f"    for j in range(U({features(v)})):"]
            source = self.load(copy, v, features(v))
            copy.lines.append(f"        {copy.at(place, 'j')} = {source}")
            body.append(copy.call())
        head = [
            *[b.source(self.real) for b in self.bodies],
            "@njit(cache=CACHE, nogil=True, error_model='numpy', fastmath={'contract'})",
            f"def {self.name}({', '.join([*ALWAYS, *self.arguments])}):",
            "    p = 1 if reverse else 0",
            "    q = 1 - p",
        ]
        for name, (k, dtype) in self.scratch.items():
            dtype = {"bool": "bool_"}.get(dtype, dtype)
            head.append(f"    {name} = np.empty((r1 - r0) * {k}, np.{dtype})")
        first = "T - 1 - k if reverse else k" if not self.back else "k if reverse else T - 1 - k"
        head += ["    for k in range(T):", f"        t = {first}"]
        return "\n".join([*head, *["        " + line for line in body], "    return 0"]) + "\n"

    def _pass(self, k: int, values: list[Value]) -> list[str]:
        """Write one pass over the rows: `values` of `k` features each."""
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
        body.lines = ["for n in range(rows):", f"    for j in range(U({k})):"]
        body.lines += ["        " + line for line in lines]
        return [body.call()]

    def _is_read(self, v: Value, own: set[Value]) -> bool:
        """Return whether something outside its pass reads a value from memory."""
        if any(self.base.get(w, (w, 0, 1))[0] is v for w, _ in self.copies):
            return True
        for w in self.section.values:
            if w.op in VIEWS or (w.op is ops.concat and v in w.inputs):
                continue
            for i in w.inputs:
                inner, offset, step = self.base.get(i, (i, 0, 1))
                if inner is v and (w not in own or offset or step != 1):
                    return True
        for w in self.section.values:  # a part of a concat that is a view of it
            if w.op is ops.concat:
                for i in w.inputs:
                    if i is not v and self.base.get(i, (i, 0, 1))[0] is v:
                        return True
        return False

    def _concat(self, v: Value) -> list[str]:
        """Write the parts of a concat that no pass has written there."""
        lines, at = [], 0
        for i in v.inputs:
            if i.op not in ELEMENTWISE:
                place = self.place(v)
                place.offset += at
                k = features(i)
                body = self.body()
                body.lines += ["for n in range(rows):", f"    for j in range(U({k})):"]
                body.lines.append(f"        {body.at(place, 'j')} = {self.load(body, i, k)}")
                lines.append(body.call())
            at += features(i)
        return lines

    def _other(self, v: Value) -> list[str]:
        k = features(v)
        out = self.place(v)
        if v.op is ops.matmul:
            x, w = v.inputs
            rows = self.place(x)
            self.arguments[f"m{w.number}"] = None
            m, n = w.shape
            given = f"{rows.array}, {rows.first()} + {rows.offset}, {rows.width}"
            made = f"{out.array}, {out.first()}, {out.width}"
            weights = f"m{w.number}, 0, {n}, {self.real}(0.0)"
            return [f"gemm(BLAS, 0, 0, r1 - r0, {n}, {m}, {given}, {weights}, {made})"]
        a = v.inputs[0]
        width = features(a)
        body = self.body()
        lines = body.lines
        lines.append("for n in range(rows):")
        if v.op is ops.sum:
            lanes = min(LANES, 1 << (width.bit_length() - 1))
            whole = width - width % lanes
            zero = f"{self.real}(0.0)"
            lines += [f"    c{i} = {zero}" for i in range(lanes)]
            lines.append(f"    for j in range(U(0), U({whole}), U({lanes})):")
            lines += [f"        c{i} += {self.load(body, a, width, f'j + U({i})')}"
                      for i in range(lanes)]  # fmt: skip
            names = [f"c{i}" for i in range(lanes)]
            while len(names) > 1:
                names = [f"({x} + {y})" for x, y in zip(names[::2], names[1::2], strict=True)]
            lines += [f"    total = {names[0]}", f"    for j in range(U({whole}), U({width})):",
                      f"        total += {self.load(body, a, width)}",
                      f"    {body.at(out, 'U(0)')} = total"]  # fmt: skip
        elif v.op is ops.max:
            load = self.load(body, a, width)
            lines += [f"    top = {self.load(body, a, width, 'U(0)')}",
                      f"    for j in range(U(1), U({width})):",
                      f"        if {load} > top or {load} != {load}:", f"            top = {load}",
                      f"    {body.at(out, 'U(0)')} = top"]  # fmt: skip
        else:  # scatter
            zero = f"{self.real}(0.0)"
            lines += [f"    for j in range(U({k})):", f"        {body.at(out, 'j')} = {zero}"]
            for part, index in zip(v.inputs, v.attrs["index"], strict=True):
                columns = _columns(index)
                assert columns is not None
                start, _, _ = columns.indices(k)
                place = self.place(v)
                place.offset += start
                n = features(part)
                lines.append(f"    for j in range(U({n})):")
                lines.append(f"        {body.at(place, 'j')} += {self.load(body, part, n)}")
        return [body.call()]


def _columns(index: Any) -> slice | None:
    """Return the slice of the features that an index names."""
    index = index if isinstance(index, tuple) else (index,)
    if len(index) == 1 and index[0] == slice(None):
        return slice(None)
    if len(index) == 2 and index[0] == slice(None) and isinstance(index[1], slice):
        return index[1] if index[1].step in (None, 1) else None
    return None
