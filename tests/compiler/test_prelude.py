"""The head of the generated kernels: errors in ulp, limits, SIMD code, the cache on disk."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="the numba back end needs numba (extra jit)")

import llvmlite.binding  # noqa: E402

from tinygrad_rnn.compiler import prelude  # noqa: E402

FUNCTIONS = ("exp", "tanh", "sigmoid", "log")
BOUNDS = {"exp": 1.1, "tanh": 2.7, "sigmoid": 2.5, "log": 1.0}  # ulp, as the docstring states
DTYPES = (np.float32, np.float64)
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = X86 and llvmlite.binding.get_host_cpu_features().get("avx2", False)


def loop(function):
    @numba.njit(nogil=True)
    def kernel(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return kernel


LOOPS = {name: loop(getattr(prelude, name)) for name in FUNCTIONS}


def apply(name, x):
    out = np.empty_like(x)
    LOOPS[name](x, out)
    return out


def exact(name, x):
    if name != "sigmoid":
        return getattr(np, name)(x)
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def ulps(got, true):
    """Return the error of `got` in units in the last place; `true` is of a wider type."""
    info = np.finfo(got.dtype)
    rounded = true.astype(got.dtype)
    assert np.array_equal(np.isnan(got), np.isnan(true))
    finite = np.isfinite(rounded)
    assert np.array_equal(got[~finite], rounded[~finite], equal_nan=True)
    got, true = got[finite], true[finite]
    _, exponent = np.frexp(true)
    unit = np.ldexp(true.dtype.type(1), np.maximum(exponent - 1, info.minexp) - info.nmant)
    return np.abs(got.astype(true.dtype) - true) / unit


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_is_as_near_as_stated_over_all_of_its_numbers(name):
    bits = np.arange(0, 2**32, 2039, dtype=np.uint64).astype(np.uint32)  # 2 million of 4 billion
    x = bits.view(np.float32)
    x = x[~np.isnan(x)]
    x = np.concatenate([x, np.linspace(-110, 110, 1_000_001, dtype=np.float32)])
    with np.errstate(all="ignore"):
        error = ulps(apply(name, x), exact(name, x.astype(np.float64)))
    assert error.max() <= BOUNDS[name]


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="long double is no wider than float64 here"
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_as_near_as_stated(name):
    rng = np.random.default_rng(5)
    widths = (1e-3, 0.1, 1.0, 3.0, 25.0, 60.0, 760.0)
    x = [rng.uniform(-width, width, 50_000) for width in widths]
    x += [sign * 10.0 ** rng.uniform(-323, 308, 50_000) for sign in (1, -1)]
    x += [rng.uniform(0.5, 2.0, 100_000), 1 + rng.uniform(-1e-2, 1e-2, 50_000)]
    x = np.concatenate(x)
    with np.errstate(all="ignore"):
        error = ulps(apply(name, x), exact(name, x.astype(np.longdouble)))
    assert error.max() <= BOUNDS[name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_limits_are_right_to_the_bit(dtype):
    inf, nan, tiny = np.inf, np.nan, np.finfo(dtype).smallest_subnormal
    x = np.array([inf, -inf, nan, 0.0, -0.0, 800.0, -800.0, tiny, -tiny], dtype)
    expected = {
        "exp": [inf, 0, nan, 1, 1, inf, 0, 1, 1],
        "tanh": [1, -1, nan, 0.0, -0.0, 1, -1, tiny, -tiny],
        "sigmoid": [1, 0, nan, 0.5, 0.5, 1, 0, 0.5, 0.5],
        "log": [inf, nan, nan, -inf, -inf, np.log(dtype(800)), nan, np.log(tiny), nan],
    }
    for name, values in expected.items():
        got, values = apply(name, x), np.array(values, dtype)
        assert np.array_equal(got, values, equal_nan=True), name
        if name != "log":
            number = ~np.isnan(values)
            assert np.array_equal(np.signbit(got)[number], np.signbit(values)[number]), name


@pytest.mark.parametrize(
    ("dtype", "last"), [(np.float32, 88.72283), (np.float64, 709.782712893384)]
)
def test_exp_overflows_where_it_must_and_underflows_gradually(dtype, last):
    x = np.array([last, np.nextafter(dtype(last), dtype(np.inf)) + dtype(1e-3)], dtype)
    largest, over = apply("exp", x)
    assert np.isfinite(largest)
    assert largest > 0.99 * np.finfo(dtype).max
    assert over == np.inf
    low = dtype(np.log(np.finfo(dtype).tiny) - 5)
    small = apply("exp", np.array([low], dtype))[0]
    assert 0 < small < np.finfo(dtype).tiny
    assert apply("sigmoid", np.array([low], dtype))[0] == small


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_and_sigmoid_never_leave_their_ranges(dtype):
    x = np.linspace(-40, 40, 2_000_003, dtype=dtype)
    assert np.abs(apply("tanh", x)).max() == 1
    s = apply("sigmoid", x)
    assert s.max() == 1
    assert s.min() >= 0
    assert np.array_equal(apply("tanh", -x), -apply("tanh", x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_loop_gives_the_same_numbers_for_any_length(name, dtype):
    x = np.random.default_rng(0).uniform(0.1, 3, 70).astype(dtype)  # SIMD lanes and the rest alike
    whole = apply(name, x)
    for length in (1, 3, 7, 17, 33, 65):
        assert np.array_equal(apply(name, x[:length].copy()), whole[:length])


@pytest.mark.skipif(not AVX2, reason="looks for the vector registers of x86 CPUs with AVX2")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_loop_is_simd_code(name, dtype):
    apply(name, np.ones(3, dtype))
    array = numba.types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")
    code = LOOPS[name].inspect_asm((array, array))
    suffix = "ps" if dtype is np.float32 else "pd"
    # packed products in registers wider than SSE's, and no call of the scalar libm
    assert re.search(rf"v(mul|fn?madd\d+){suffix}\b.*%?[yz]mm", code)
    assert not re.search(rf"\b(call|jmp)[a-z]*\s.*\b{name}f?\b", code)


def test_a_function_of_an_integer_is_refused():
    with pytest.raises(numba.TypingError, match="tanh takes a float32 or a float64, not int64"):
        LOOPS["tanh"](np.arange(3), np.empty(3))


def test_bits_go_there_and_back():
    @numba.njit
    def there(x):
        return prelude.to_bits(x)

    @numba.njit
    def back(x):
        return prelude.from_bits(x)

    for x in (np.float32(-1.5), np.float64(np.pi)):
        integer = np.int32 if x.dtype == np.float32 else np.int64
        bits = there(x)
        assert bits == int(x.view(integer))
        assert back(integer(bits)) == x
    with pytest.raises(numba.TypingError, match="to_bits takes float32 or float64, not int64"):
        there(3)


KERNEL = """

@njit(nogil=True, cache=True)
def kernel(pack_at, product_at, outer_at, x, packed, y, z):
    pack(pack_at, 2, 2, x, 0, 2, 1, packed, 0)
    product(product_at, 2, 2, 2, x, 0, 2, packed, 0, y, 0, 2)
    outer(outer_at, 2, 2, 2, x, 0, 2, y, 0, 2, z, 0, 1)
    for i in range(4):
        z[i] = tanh(z[i]) + sigmoid(z[i]) + exp(z[i]) + log(z[i])
"""
CALLER = """
import numpy as np, kernel_file
from tinygrad_rnn.compiler.products import addresses, packed_size
x = np.array([[0.1, 0.2], [0.3, 0.4]])
packed, y, z = np.empty(packed_size(2, 2, x.dtype)), np.empty(4), np.empty(4)
kernel_file.kernel(*addresses(x.dtype), x.ravel(), packed, y, z)
u = x.T @ (x @ x)
wanted = np.tanh(u) + 1 / (1 + np.exp(-u)) + np.exp(u) + np.log(u)
assert np.allclose(z.reshape(2, 2), wanted, rtol=1e-14)
print(sum(kernel_file.kernel.stats.cache_hits.values()))
"""


def test_its_text_and_a_kernel_are_a_file_that_numba_keeps_between_processes(tmp_path):
    text = Path(prelude.__file__).read_text()
    assert "tinygrad_rnn" not in text
    (tmp_path / "kernel_file.py").write_text(text + KERNEL)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    hits = [
        subprocess.run(
            [sys.executable, "-c", CALLER],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
