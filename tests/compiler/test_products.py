"""Products of the compiled kernels against NumPy, to the bit where that is promised."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="the products are written with numba's LLVM")

from tinygrad_rnn.compiler import prelude, products  # noqa: E402
from tinygrad_rnn.compiler.prelude import U  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (np.float32, np.float64)
AWKWARD = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)
GUARD = 7.0  # what lies around what is written


# --- two ways to call


def by_ctypes(name, *given):
    """Call a function of float32 or float64 by its address."""
    dtype = next(x.dtype for x in given if isinstance(x, np.ndarray))
    values = [x.ctypes.data if isinstance(x, np.ndarray) else x for x in given]
    kinds = [ctypes.c_void_p if isinstance(x, np.ndarray) else ctypes.c_int64 for x in given]
    address = getattr(products.addresses(dtype), name)
    ctypes.CFUNCTYPE(None, *kinds)(address)(*values)


@numba.njit(nogil=True)
def pack_kernel(at, inner, columns, w, w_at, w_row, w_column, to, to_at):
    prelude.pack(at, inner, columns, w, w_at, w_row, w_column, to, to_at)


@numba.njit(nogil=True)
def product_kernel(at, rows, inner, columns, a, a_at, a_row, packed, p_at, c, c_at, c_row):
    prelude.product(at, rows, inner, columns, a, a_at, a_row, packed, p_at, c, c_at, c_row)


@numba.njit(nogil=True)
def outer_kernel(at, rows, m, n, a, a_at, a_row, b, b_at, b_row, c, part, parts):
    prelude.outer(at, rows, m, n, a, a_at, a_row, b, b_at, b_row, c, part, parts)


KERNELS = {"pack": pack_kernel, "product": product_kernel, "outer": outer_kernel}


def by_kernel(name, *given):
    """Call it from a compiled kernel, as a generated one does."""
    dtype = next(x.dtype for x in given if isinstance(x, np.ndarray))
    KERNELS[name](getattr(products.addresses(dtype), name), *given)


# --- matrices in larger arrays


class Placed:
    """A matrix with something before it, between its rows and after it."""

    def __init__(self, values, at=5, more=3):
        rows, columns = values.shape
        self.at, self.row = at, columns + more
        self.flat = np.full(at + rows * self.row + 70, GUARD, values.dtype)
        self.matrix[: rows * self.row].reshape(rows, self.row)[:, :columns] = values
        self.shape = values.shape

    @property
    def matrix(self):
        return self.flat[self.at :]

    @property
    def values(self):
        rows, columns = self.shape
        return self.matrix[: rows * self.row].reshape(rows, self.row)[:, :columns]

    def around_is_untouched(self):
        rest = np.ones(self.flat.size, bool)
        rows, columns = self.shape
        rest[self.at :][: rows * self.row].reshape(rows, self.row)[:, :columns] = False
        return (self.flat[rest] == GUARD).all()


def drawn(*shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def nothing(*shape, dtype):
    return Placed(np.full(shape, np.nan, dtype))


BEFORE = 11  # numbers before the panels


def packed(w, call=by_ctypes, transposed=False):
    """Return the panels of `w`, and some numbers before them."""
    given = Placed(np.ascontiguousarray(w.T) if transposed else w)
    size = products.packed_size(*w.shape, w.dtype)
    to = np.full(BEFORE + size + 70, GUARD, w.dtype)
    to[BEFORE:][:size] = np.nan
    strides = (1, given.row) if transposed else (given.row, 1)
    call("pack", *w.shape, given.flat, given.at, *strides, to, BEFORE)
    assert (to[:BEFORE] == GUARD).all()
    assert (to[BEFORE + size :] == GUARD).all()
    return to[: BEFORE + size]


def product(a, panels, columns, call=by_ctypes):
    """Return the product of `a` with packed weights."""
    given, c = Placed(a), nothing(len(a), columns, dtype=a.dtype)
    source = (given.flat, given.at, given.row, panels, BEFORE)
    call("product", *a.shape, columns, *source, c.flat, c.at, c.row)
    assert c.around_is_untouched()
    return c.values


def outer(a, b, parts=1, call=by_ctypes):
    """Return the sum over rows of products of rows."""
    x, y, shape = Placed(a), Placed(b, at=9, more=6), (a.shape[1], b.shape[1])
    c = np.full(shape[0] * shape[1] + 70, GUARD, a.dtype)
    c[: shape[0] * shape[1]] = np.nan
    for part in reversed(range(parts)):
        given = (x.flat, x.at, x.row, y.flat, y.at, y.row)
        call("outer", len(a), *shape, *given, c, part, parts)
    assert (c[shape[0] * shape[1] :] == GUARD).all()
    return c[: shape[0] * shape[1]].reshape(shape)


def check_sum(got, a, b):
    """Compare with the exact product, within what rounding each of its terms allows."""
    wider = np.float64 if got.dtype == np.float32 else np.longdouble
    exact, most = a.astype(wider) @ b.astype(wider), np.abs(a) @ np.abs(b)
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= a.shape[1] * np.finfo(got.dtype).eps * most).all()


# --- what holds for every instruction set


def check_pack(dtype, inner, columns, call=by_ctypes):
    w = 1 + np.arange(inner * columns, dtype=dtype).reshape(inner, columns)
    width = products.packed_size(1, 1, np.dtype(dtype))
    panels = -(-columns // width)
    wide = np.zeros((inner, panels * width), dtype)
    wide[:, :columns] = w
    wanted = wide.reshape(inner, panels, width).swapaxes(0, 1).ravel()
    np.testing.assert_array_equal(packed(w, call)[BEFORE:], wanted)
    np.testing.assert_array_equal(packed(w, call, transposed=True)[BEFORE:], wanted)


def check_product(dtype, inner, columns, call=by_ctypes):
    a, w = drawn(20, inner, dtype=dtype), drawn(inner, columns, dtype=dtype, seed=1)
    panels = packed(w, call)
    whole = product(a, panels, columns, call)
    check_sum(whole, a, w)
    for rows in range(1, 20):  # so that rows are also independent of how many there are
        np.testing.assert_array_equal(product(a[:rows], panels, columns, call), whole[:rows])


def check_outer(dtype, rows, m, n, call=by_ctypes):
    a, b = drawn(rows, m, dtype=dtype), drawn(rows, n, dtype=dtype, seed=1)
    whole = outer(a, b, call=call)
    check_sum(whole, a.T, b)
    for parts in (2, 3, 7):
        np.testing.assert_array_equal(outer(a, b, parts, call), whole)


OUTER_SIZES = ((1, 1), (1, 33), (7, 15), (8, 32), (9, 65), (65, 1), (17, 100))


@pytest.mark.parametrize("call", [by_ctypes, by_kernel])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [0, *AWKWARD, 129])
def test_packing_gives_panels_filled_up_with_zeros(inner, dtype, call):
    for columns in AWKWARD:
        check_pack(dtype, inner, columns, call)


@pytest.mark.parametrize("call", [by_ctypes, by_kernel])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", AWKWARD)
def test_product_is_that_of_numpy(inner, dtype, call):
    for columns in AWKWARD:
        check_product(dtype, inner, columns, call)


@pytest.mark.parametrize("call", [by_ctypes, by_kernel])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 600])
def test_outer_is_that_of_numpy_in_any_number_of_parts(rows, dtype, call):
    for m, n in OUTER_SIZES:
        check_outer(dtype, rows, m, n, call)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_part_of_a_sum_writes_columns_of_its_own(dtype):
    a, b = drawn(3, 4, dtype=dtype), drawn(3, 200, dtype=dtype, seed=1)
    whole = outer(a, b)
    for parts in (1, 2, 3, 7, 50):
        written = np.zeros((4, 200), int)
        for part in range(parts):
            c = np.full((4, 200), np.nan, dtype)
            by_ctypes("outer", 3, 4, 200, a, 0, 4, b, 0, 200, c, part, parts)
            some = ~np.isnan(c)
            np.testing.assert_array_equal(c[some], whole[some])
            written += some
        assert (written == 1).all()


FORMS = {"AVX2": (32, 4), "SSE": (16, 4), "AVX-512": (64, 8), "two rows": (16, 2)}
SET = "products._BYTES, products.HEIGHT = {}, {}"
OTHER = """
import numpy as np
from llvmlite import ir
from tinygrad_rnn.compiler import products
{}
from tests.compiler import test_products as t
assert f"llvm.fmuladd.v{{products._BYTES // 4}}f32" in str(products._Module(ir.FloatType()).module)
for dtype in t.DTYPES:
    for inner in (0, 1, 17, 65):
        for columns in t.AWKWARD:
            t.check_pack(dtype, inner, columns)
            if inner:
                t.check_product(dtype, inner, columns)
    for rows in (1, 255, 257):
        for m, n in t.OUTER_SIZES:
            t.check_outer(dtype, rows, m, n)
print(products._BYTES)
"""


def script(code, **env):
    """Run a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | env, cwd=ROOT, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_tiles_of_other_instruction_sets_are_right(form):
    assert script(OTHER.format(SET.format(*form))) == [str(form[0])]


def test_without_avx_it_is_right():
    assert script(OTHER.format(""), NUMBA_ENABLE_AVX="0") == ["16"]


# --- edges


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 32, 33])
def test_an_empty_sum_is_zero(dtype, columns):
    for rows in (1, 8, 11):
        got = product(np.empty((rows, 0), dtype), np.empty(BEFORE, dtype), columns)
        assert got.shape == (rows, columns)
        assert (got == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_no_rows_or_no_columns_nothing_is_written(dtype):
    panels = packed(drawn(3, 33, dtype=dtype))
    assert product(np.empty((0, 3), dtype), panels, 33).size == 0
    assert product(drawn(4, 3, dtype=dtype), np.empty(BEFORE, dtype), 0).size == 0
    assert packed(np.empty((3, 0), dtype)).size == BEFORE
    assert outer(drawn(4, 0, dtype=dtype), drawn(4, 5, dtype=dtype)).size == 0
    assert outer(drawn(4, 5, dtype=dtype), drawn(4, 0, dtype=dtype), parts=2).size == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype):
    a, w = drawn(20, 37, dtype=dtype), drawn(37, 71, dtype=dtype, seed=1)
    panels = packed(w)
    whole = product(a, panels, 71)
    strange = np.where(np.arange(20)[:, None] == 9, a, np.nan).astype(dtype)
    np.testing.assert_array_equal(product(strange, panels, 71)[9], whole[9])
    for first in range(20):
        for last in range(first + 1, min(first + 10, 21)):
            part = product(a[first:last], panels, 71)
            np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("columns", [1, 31, 33])
def test_what_is_not_finite_stays_in_its_row_and_its_column(columns, strange, dtype):
    a, w = drawn(11, 5, dtype=dtype), drawn(5, columns, dtype=dtype, seed=1)
    a[3, 2] = strange
    w[4, columns - 1] = -strange
    with np.errstate(invalid="ignore"):
        wanted = a @ w
    got = product(a, packed(w), columns)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
    some = ~np.isfinite(wanted)
    np.testing.assert_array_equal(got[some], wanted[some])
    assert some.sum() == 10 + columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row_and_its_column_of_a_sum_over_rows(strange, dtype):
    a, b = drawn(300, 11, dtype=dtype), drawn(300, 33, dtype=dtype, seed=1)
    a[280, 10], b[20, 32] = strange, strange
    some = ~np.isfinite(outer(a, b))
    wanted = np.zeros((11, 33), bool)
    wanted[10], wanted[:, 32] = True, True
    np.testing.assert_array_equal(some, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_go_in_the_order_of_the_terms(dtype):
    large = dtype(4 / np.finfo(dtype).eps)
    a = np.array([[large, 1, -large, 1]], dtype)
    w = np.ones((4, 3), dtype)
    np.testing.assert_array_equal(product(a, packed(w), 3), np.ones((1, 3), dtype))
    rows = np.zeros((600, 1), dtype)
    rows[[0, 300, 400, 599], 0] = a[0]  # over its blocks too
    np.testing.assert_array_equal(outer(rows, np.ones((600, 3), dtype)), np.ones((1, 3), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_numbers_may_be_of_any_type(dtype):
    a, w = drawn(3, 4, dtype=dtype), drawn(4, 5, dtype=dtype, seed=1)
    panels, c = packed(w), np.full((3, 5), np.nan, dtype)
    sizes = np.int32(3), U(4), np.uint8(5)
    by_kernel("product", *sizes, a, False, np.int16(4), panels, np.int8(BEFORE), c, U(0), 5)
    np.testing.assert_array_equal(c, product(a, panels, 5))


# --- threads and memory


def test_several_threads_may_call_at_once():
    def work(seed, call):
        dtype = DTYPES[seed % 2]
        a, w = drawn(13, 37, dtype=dtype, seed=seed), drawn(37, 45, dtype=dtype, seed=seed + 50)
        made = [(product(a, packed(w, call), 45, call), outer(a, a, 3, call)) for _ in range(40)]
        return a, w, made

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(work, range(12), 6 * [by_ctypes, by_kernel]))
    for a, w, made in done:
        check_sum(made[0][0], a, w)
        check_sum(made[0][1], a.T, a)
        for one, two in made[1:]:
            np.testing.assert_array_equal(one, made[0][0])
            np.testing.assert_array_equal(two, made[0][1])


def test_parts_of_a_sum_may_be_made_by_threads_at_once():
    a, b = drawn(300, 9, dtype=np.float32), drawn(300, 200, dtype=np.float32, seed=1)
    whole = outer(a, b)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            c = np.full(whole.shape, np.nan, np.float32)
            one = partial(by_ctypes, "outer", 300, 9, 200, a, 0, 9, b, 0, 200, c)
            list(pool.map(one, range(5), [5] * 5))
            np.testing.assert_array_equal(c, whole)


@cache
def repeated():
    """Return a kernel that calls many times."""

    @numba.njit(nogil=True)
    def kernel(product_at, outer_at, times, columns, a, panels, c):
        for _ in range(times):
            prelude.product(product_at, 1, 1, columns, a, 0, 1, panels, BEFORE, c, 0, columns)
            prelude.outer(outer_at, 1, 1, 1, a, 0, 1, a, 0, 1, c, 0, 1)

    return kernel


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
@pytest.mark.parametrize("columns", [1, 64])  # with and without columns that need a buffer
def test_memory_is_given_back(columns):
    a, c = np.ones(1, np.float32), np.zeros(columns, np.float32)
    panels = packed(np.ones((1, columns), np.float32))
    at = products.addresses(np.dtype(np.float32))
    run = partial(repeated(), at.product, at.outer)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    run(1000, columns, a, panels, c)
    before = resident()
    run(1_000_000, columns, a, panels, c)  # 32 MB at the least, if any of four buffers stayed
    assert (c == 1).all()
    assert resident() - before < 8e6


def test_the_functions_are_made_once_for_a_type():
    assert products.addresses(np.dtype("float32")) is products.addresses(np.dtype(np.float32))
    assert (
        len({*products.addresses(np.dtype("float32")), *products.addresses(np.dtype(float))}) == 6
    )
