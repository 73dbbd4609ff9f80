"""Matrix products for the kernels, written as LLVM code: rows with weights, rows with rows.

Weights are packed once a call, into panels of two vectors' width, so that the many small products
of a loop over time read them in the order in which they lie.  A tile of `HEIGHT` rows and one panel
stays in registers while the inner axis is summed, in its order and element by element: what a row
becomes depends neither on the rows beside it nor on the threads.

The functions are made once in a process, in some hundredths of a second; kernels call them by their
addresses.  Sizes and strides are 64-bit integers, `x_at` is where x begins in its array:

``pack(inner, columns, w, w_at, w_row, w_column, to, to_at)``
    Panels of B (inner, columns), ``B[k, j] = w[w_at + k * w_row + j * w_column]``, one stride 1.
``product(rows, inner, columns, a, a_at, a_row, packed, packed_at, c, c_at, c_row)``
    ``C = A B`` with ``A[i, k] = a[a_at + i * a_row + k]`` and C likewise.
``outer(rows, m, n, a, a_at, a_row, b, b_at, b_row, c, part, parts)``
    The sum over rows of ``A[i]^T B[i]`` (m, n); one of `parts` parts of its columns.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call, no-untyped-def"

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core.codegen import get_host_cpu_features

_FEATURES = get_host_cpu_features()
_BYTES = 64 if "+avx512f" in _FEATURES else 32 if "+avx," in _FEATURES else 16  # of a vector
HEIGHT = 8 if "+avx512f" in _FEATURES or "+neon" in _FEATURES else 4  # as registers allow
BLOCK = 256  # rows that `outer` packs at a time
INTEGER, BYTE = ir.IntType(64), ir.IntType(8)
_ZERO32 = ir.Constant(ir.IntType(32), 0)


class Addresses(NamedTuple):
    """Where the functions of one type lie; they hold in this process only."""

    pack: int
    product: int
    outer: int


def packed_size(inner: int, columns: int, dtype: np.dtype[Any]) -> int:
    """Return how many numbers ``pack`` writes.

    >>> packed_size(3, 1, np.dtype(np.float64)) % 3
    0
    """
    width = 2 * _BYTES // dtype.itemsize
    return -(-columns // width) * width * inner


@lru_cache
def addresses(dtype: np.dtype[Any]) -> Addresses:
    """Make the functions for float32 or float64.

    >>> addresses(np.dtype(np.float32)).pack > 0
    True
    """
    with _lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        text = str(_Module(ir.FloatType() if dtype == np.float32 else ir.DoubleType()).module)
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=_FEATURES, opt=3, jit=True
        )
        module = llvm.parse_assembly(text)
        module.verify()
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        _engines.append(engine)
        return Addresses(*[engine.get_function_address(name) for name in Addresses._fields])


_lock = threading.Lock()
_engines: list[Any] = []  # the code lives as long as they do


def _n(k: int) -> Any:
    return ir.Constant(INTEGER, k)


class _Code:
    """A function that is being written."""

    def __init__(self, module: Any, name: str, *kinds: Any) -> None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.function, self.arguments = function, function.args
        self.builder = ir.IRBuilder(function.append_basic_block("begin"))

    def at(self, pointer: Any, *terms: Any) -> Any:
        """Return the pointer behind `pointer` by the sum of the terms."""
        for term in terms:
            pointer = self.builder.gep(pointer, [term])
        return pointer

    def times(self, x: Any, y: Any) -> Any:
        """Return x * y, whole numbers."""
        return self.builder.mul(x, _n(y) if isinstance(y, int) else y)

    def least(self, x: Any, y: Any) -> Any:
        """Return the smaller of two whole numbers."""
        return self.builder.select(self.builder.icmp_signed("<", x, y), x, y)

    @contextmanager
    def loop(self, stop: Any, by: int = 1, start: Any = None) -> Iterator[Any]:
        """Write a loop that counts up to `stop`."""
        builder, begin = self.builder, self.builder.block
        head, body, done = [self.function.append_basic_block() for _ in range(3)]
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(INTEGER)
        builder.cbranch(builder.icmp_signed("<", k, stop), body, done)
        builder.position_at_end(body)
        yield k
        k.add_incoming(_n(0) if start is None else start, begin)
        k.add_incoming(builder.add(k, _n(by)), builder.block)
        builder.branch(head)
        builder.position_at_end(done)

    def end(self) -> Any:
        """Return from the function."""
        self.builder.ret_void()
        return self.function


class _Module:
    """The LLVM module for one type of numbers."""

    def __init__(self, real: Any) -> None:
        self.module = ir.Module("products")
        self.module.triple = llvm.get_process_triple()
        self.real, self.size = real, 4 if real == ir.FloatType() else 8
        self.lanes = _BYTES // self.size
        self.width = 2 * self.lanes
        self.pointer, self.vector = real.as_pointer(), ir.VectorType(real, self.lanes)
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.size}"  # once rounded, where the CPU can
        self.plus = ir.Function(self.module, kind, name)
        heights = [h for h in (8, 4, 2, 1) if h <= HEIGHT]
        self.tiles = {h: self.write_tile(h) for h in heights}
        self.move = self.write_move()
        self.panel = self.write_panel()
        self.panels = self.write_panels()
        self.write_pack()
        self.write_product()
        self.write_outer()

    def function(self, name: str, kinds: str, inner: bool = True) -> _Code:
        """Begin a function; `kinds` has a letter for each argument: integer, pointer."""
        code = _Code(self.module, name, *[INTEGER if k == "i" else self.pointer for k in kinds])
        if inner:
            code.function.linkage = "internal"
        return code

    def write_tile(self, rows: int) -> Any:
        """``C = A B`` or ``C += A B`` for so many rows of a panel."""
        code = self.function(f"tile_{rows}", "ipiipipii")
        inner, a, a_row, a_step, b, b_step, c, c_row, add = code.arguments
        builder = code.builder

        def vectors(start: Any) -> list[Any]:
            each = [code.at(start, _n(k * self.lanes)) for k in range(2)]
            return [builder.bitcast(p, self.vector.as_pointer()) for p in each]

        made = [p for r in range(rows) for p in vectors(code.at(c, code.times(c_row, r)))]
        given = [code.at(a, code.times(a_row, r)) for r in range(rows)]
        adds = builder.icmp_signed("!=", add, _n(0))
        zero = ir.Constant(self.vector, None)
        first = [builder.select(adds, builder.load(p, align=self.size), zero) for p in made]
        begin = builder.block
        with code.loop(inner) as k:
            head, body = k.parent, builder.block
            builder.position_after(k)
            at, panel = builder.phi(INTEGER), builder.phi(self.pointer)
            sums = [builder.phi(self.vector) for _ in made]
            builder.position_at_end(body)
            weights = [builder.load(p, align=self.size) for p in vectors(panel)]
            new = []
            for r, start in enumerate(given):
                x = self.spread(builder, builder.load(code.at(start, at), align=self.size))
                pair = zip(weights, sums[2 * r : 2 * r + 2], strict=True)
                new += [builder.call(self.plus, [x, w, s]) for w, s in pair]
            steps = [(at, _n(0), builder.add(at, a_step)), (panel, b, code.at(panel, b_step)),
                     *zip(sums, first, new, strict=True)]  # fmt: skip
            for phi, start, after in steps:
                phi.add_incoming(start, begin)
                phi.add_incoming(after, body)
            del head
        for s, p in zip(sums, made, strict=True):
            builder.store(s, p, align=self.size)
        return code.end()

    def spread(self, builder: Any, x: Any) -> Any:
        """Return a vector of which each element is `x`."""
        none = ir.Constant(self.vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return builder.shuffle_vector(builder.insert_element(none, x, _ZERO32), none, zeros)

    def copy(self, code: _Code, a: Any, c: Any, n: int) -> None:
        """Copy `n` numbers at once."""
        builder, kind = code.builder, ir.VectorType(self.real, n).as_pointer()
        value = builder.load(builder.bitcast(a, kind), align=self.size)
        builder.store(value, builder.bitcast(c, kind), align=self.size)

    def write_move(self) -> Any:
        """Copy (rows, columns) numbers."""
        code = self.function("move", "iipipi")
        rows, columns, a, a_row, c, c_row = code.arguments
        with code.loop(rows) as i:
            x, y = code.at(a, code.times(i, a_row)), code.at(c, code.times(i, c_row))
            with code.loop(columns) as j:
                code.builder.store(code.builder.load(code.at(x, j)), code.at(y, j))
        return code.end()

    def write_panel(self) -> Any:
        """All rows of a panel, tile by tile; tiles of A lie a_block apart."""
        code = self.function("panel", "iipiiipipii")
        rows, inner, a, a_row, a_step, a_block, b, b_step, c, c_row, add = code.arguments
        builder = code.builder
        whole = builder.mul(builder.sdiv(rows, _n(HEIGHT)), _n(HEIGHT))
        with code.loop(whole, HEIGHT) as i:
            x = code.at(a, code.times(builder.sdiv(i, _n(HEIGHT)), a_block))
            y = code.at(c, code.times(i, c_row))
            builder.call(self.tiles[HEIGHT], [inner, x, a_row, a_step, b, b_step, y, c_row, add])
        rest = code.at(a, code.times(builder.sdiv(whole, _n(HEIGHT)), a_block))
        done = whole
        for height, tile in self.tiles.items():
            if height < HEIGHT:
                left = builder.sub(rows, done)
                with builder.if_then(builder.icmp_signed(">=", left, _n(height))):
                    x = code.at(rest, code.times(builder.sub(done, whole), a_row))
                    y = code.at(c, code.times(done, c_row))
                    builder.call(tile, [inner, x, a_row, a_step, b, b_step, y, c_row, add])
                fits = builder.icmp_signed(">=", left, _n(height))
                done = builder.select(fits, builder.add(done, _n(height)), done)
        return code.end()

    def write_panels(self) -> Any:
        """A panel with so many columns, and more of them only in a buffer of its own."""
        code = self.function("panels", "iiipiiipipiip")
        (rows, inner, columns, a, a_row, a_step, a_block, b, b_step, c, c_row, add, spare) = (
            code.arguments
        )
        builder, wide = code.builder, _n(self.width)
        given = [rows, inner, a, a_row, a_step, a_block, b, b_step]
        full = builder.icmp_signed("==", columns, wide)
        with builder.if_else(full) as (yes, no):
            with yes:
                builder.call(self.panel, [*given, c, c_row, add])
            with no:
                builder.call(self.move, [rows, columns, c, c_row, spare, wide])
                builder.call(self.panel, [*given, spare, wide, add])
                builder.call(self.move, [rows, columns, spare, wide, c, c_row])
        return code.end()

    def spare(self, code: _Code, numbers: Any) -> Any:
        """Return memory for so many numbers; free it."""
        name, byte = "malloc", BYTE.as_pointer()
        make = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(byte, [INTEGER]), name
        )
        made = code.builder.call(make, [code.times(numbers, self.size)])
        return code.builder.bitcast(made, self.pointer)

    def free(self, code: _Code, pointer: Any) -> None:
        """Give memory back."""
        byte = BYTE.as_pointer()
        release = self.module.globals.get("free") or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [byte]), "free"
        )
        code.builder.call(release, [code.builder.bitcast(pointer, byte)])

    def write_pack(self) -> None:
        """Write ``pack``."""
        code = self.function("pack", "iipiiipi", inner=False)
        inner, columns, w, w_at, w_row, w_column, to, to_at = code.arguments
        builder = code.builder
        source, to = code.at(w, w_at), code.at(to, to_at)
        with code.loop(columns, self.width) as j:
            n = code.least(builder.sub(columns, j), _n(self.width))
            x = code.at(source, code.times(j, w_column))
            y = code.at(to, code.times(j, inner))
            self.write_rows(code, inner, n, x, w_row, w_column, y)
        code.end()

    def write_rows(
        self, code: _Code, rows: Any, n: Any, x: Any, x_row: Any, x_column: Any, y: Any
    ) -> None:
        """Write the loops that copy (rows, n) numbers into rows as wide as a panel."""
        builder, wide = code.builder, _n(self.width)
        full = builder.icmp_signed("==", n, wide)
        plain = builder.icmp_signed("==", x_column, _n(1))
        with builder.if_else(builder.and_(full, plain)) as (yes, no):
            with yes, code.loop(rows) as k:
                a, c = code.at(x, code.times(k, x_row)), code.at(y, code.times(k, wide))
                for part in range(2):
                    at = _n(part * self.lanes)
                    self.copy(code, code.at(a, at), code.at(c, at), self.lanes)
            with no, code.loop(rows, 64) as first:  # so that what is written stays near
                last = code.least(rows, builder.add(first, _n(64)))
                with code.loop(n) as j:
                    a, c = code.at(x, code.times(j, x_column)), code.at(y, j)
                    with code.loop(last, start=first) as k:
                        value = builder.load(code.at(a, code.times(k, x_row)))
                        builder.store(value, code.at(c, code.times(k, wide)))
                with code.loop(wide, start=n) as j, code.loop(last, start=first) as k:
                    q = code.at(y, j, code.times(k, wide))
                    builder.store(ir.Constant(self.real, 0.0), q)

    def write_product(self) -> None:
        """Write ``product``."""
        code = self.function("product", "iiipiipipii", inner=False)
        rows, inner, columns, a, a_at, a_row, packed, packed_at, c, c_at, c_row = code.arguments
        builder, wide = code.builder, _n(self.width)
        x, y = code.at(a, a_at), code.at(c, c_at)
        edge = builder.icmp_signed("!=", builder.srem(columns, wide), _n(0))
        spare = self.spare(code, builder.select(edge, code.times(rows, wide), _n(1)))
        with code.loop(columns, self.width) as j:
            n = code.least(builder.sub(columns, j), wide)
            panel = code.at(packed, packed_at, code.times(j, inner))
            given = [x, a_row, _n(1), code.times(a_row, HEIGHT), panel, wide]
            builder.call(self.panels, [rows, inner, n, *given, code.at(y, j), c_row, _n(0), spare])
        self.free(code, spare)
        code.end()

    def write_outer(self) -> None:
        """Write ``outer``."""
        code = self.function("outer", "iiipiipiipii", inner=False)
        rows, m, n, a, a_at, a_row, b, b_at, b_row, c, part, parts = code.arguments
        builder, wide = code.builder, _n(self.width)
        panels = builder.sdiv(builder.add(n, _n(self.width - 1)), wide)

        def border(k: Any) -> Any:
            return code.least(n, builder.mul(builder.sdiv(builder.mul(panels, k), parts), wide))

        first, last = border(part), border(builder.add(part, _n(1)))
        most = code.least(rows, _n(BLOCK))
        tiles = builder.sdiv(builder.add(m, _n(HEIGHT - 1)), _n(HEIGHT))
        left = self.spare(code, code.times(code.times(tiles, HEIGHT), most))
        right = self.spare(code, code.times(most, wide))
        spare = self.spare(code, code.times(m, wide))
        with code.loop(rows, BLOCK) as k:
            count = code.least(builder.sub(rows, k), _n(BLOCK))
            block = code.times(count, HEIGHT)
            x = code.at(a, a_at, code.times(k, a_row))
            y = code.at(b, b_at, code.times(k, b_row))
            add = builder.zext(builder.icmp_signed(">", k, _n(0)), INTEGER)
            with code.loop(tiles) as tile:  # columns of A side by side
                i = code.times(tile, HEIGHT)
                some = code.least(builder.sub(m, i), _n(HEIGHT))
                from_, to = code.at(x, i), code.at(left, code.times(tile, block))
                with builder.if_else(builder.icmp_signed("==", some, _n(HEIGHT))) as (yes, no):
                    with yes, code.loop(count) as row:
                        self.copy(code, code.at(from_, code.times(row, a_row)),
                                  code.at(to, code.times(row, HEIGHT)), HEIGHT)  # fmt: skip
                    with no:
                        builder.call(self.move, [count, some, from_, a_row, to, _n(HEIGHT)])
            with code.loop(last, self.width, start=first) as j:
                some = code.least(builder.sub(last, j), wide)
                self.write_rows(code, count, some, code.at(y, j), b_row, _n(1), right)
                given = [left, _n(1), _n(HEIGHT), block, right, wide]
                builder.call(self.panels, [m, count, some, *given, code.at(c, j), n, add, spare])
        for pointer in (left, right, spare):
            self.free(code, pointer)
        code.end()
