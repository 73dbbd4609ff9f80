"""What every generated numba kernel starts with: SIMD exp, tanh, sigmoid and log, and BLAS' gemm.

The text of this module is the head of each kernel file, so it imports nothing from this package
and holds no addresses. A function here is an `intrinsic`: it writes straight-line LLVM code at
the place of its call, for float32 or float64 as its argument is, so that nothing is left to be
typed or inlined and a loop over it becomes SIMD code. Errors, in units in the last place (ulp) of
the result against the exact value, largest found over all float32 and dense sweeps of float64:

========  =======  =======  ==================================================================
function  float32  float64  limits
========  =======  =======  ==================================================================
exp       1.1      1.1      overflow is inf, underflow is gradual down to 0
tanh      2.5      2.7      +-1 to the bit where that is nearest; tanh(-0) is -0
sigmoid   2.5      2.5      0 and 1 to the bit; small results are subnormal before they are 0
log       1.0      1.0      log(0) is -inf, log of a negative number NaN; subnormals are right
========  =======  =======  ==================================================================

They are for CPUs with a fused multiply-add. NaN stays NaN. All of this holds if the kernel keeps
the order of operations: `fastmath` may be ``{"contract"}`` or ``{"contract", "nsz"}`` (then the
sign of a zero is not kept), no more.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-call"

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import get_cython_function_address, intrinsic


class _Format:
    """What the functions know of one floating-point format: its bits and its constants."""

    def __init__(self, bits: int, mantissa: int, constants: dict[str, Any]) -> None:
        self.real = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.integer = ir.IntType(bits)
        self.suffix = f"f{bits}"
        self.mantissa = mantissa
        self.bias = (1 << (bits - mantissa - 2)) - 1
        self.number = np.float32 if bits == 32 else np.float64
        self.unsigned = np.uint32 if bits == 32 else np.uint64
        self.constants = constants

    def bits_of(self, number: float) -> int:
        """Return the bits of `number` in this format as an integer."""
        return int(self.number(number).view(self.unsigned))


# exp(r) = 1 + r + r^2 q(r) for |r| <= log(2) / 2, minimax fits; log(1 + f) as in fdlibm's e_log.c.
# ln2_high has enough zeros at its end for its product with an exponent to be exact.
_FLOAT32: Final = _Format(
    32,
    23,
    {
        "ln2_high": 0.693145751953125,
        "ln2_low": 1.4286068203094173e-06,
        "exp_range": (-104.0, 89.0),
        "exp": (
            0.49999998022545897887,
            0.16666538828607495927,
            0.041667232481247457144,
            0.0083671614652560914629,
            0.0013881360218381730376,
        ),
        "log": (
            0.6666666269302368,
            0.40000972151756287,
            0.2849878668785095,
            0.24279078841209412,
        ),
    },
)
_FLOAT64: Final = _Format(
    64,
    52,
    {
        "ln2_high": 0.6931471803691238,
        "ln2_low": 1.9082149292705877e-10,
        "exp_range": (-746.0, 710.0),
        "exp": (
            0.5000000000000001,
            0.16666666666666669,
            0.04166666666662243,
            0.008333333333329931,
            0.0013888888918057098,
            0.0001984126986370219,
            2.4801519991900052e-05,
            2.755726745716343e-06,
            2.762070569712557e-07,
            2.5100860168090098e-08,
        ),
        "log": (
            6.666666666666735130e-01,
            3.999999999940941908e-01,
            2.857142874366239149e-01,
            2.222219843214978396e-01,
            1.818357216161805012e-01,
            1.531383769920937332e-01,
            1.479819860511658591e-01,
        ),
    },
)


class _Real:
    """A real number of the kernel, whose operators write LLVM instructions."""

    def __init__(self, builder: Any, form: _Format, value: Any) -> None:
        self.builder, self.form, self.value = builder, form, value

    def new(self, value: Any) -> "_Real":
        """Return the number whose LLVM value is `value`."""
        return _Real(self.builder, self.form, value)

    def number(self, other: Any) -> "_Real":
        """Return `other` as a number of the kernel; a Python float becomes a constant."""
        if isinstance(other, _Real):
            return other
        return self.new(ir.Constant(self.form.real, float(self.form.number(other))))

    def __add__(self, other: Any) -> "_Real":
        return self.new(self.builder.fadd(self.value, self.number(other).value))

    def __sub__(self, other: Any) -> "_Real":
        return self.new(self.builder.fsub(self.value, self.number(other).value))

    def __mul__(self, other: Any) -> "_Real":
        return self.new(self.builder.fmul(self.value, self.number(other).value))

    def __truediv__(self, other: Any) -> "_Real":
        return self.new(self.builder.fdiv(self.value, self.number(other).value))

    def __neg__(self) -> "_Real":
        return self.new(self.builder.fneg(self.value))

    def call(self, name: str, *others: Any) -> "_Real":
        """Return LLVM's intrinsic `name` of this number and `others`."""
        values = [self.value, *(self.number(other).value for other in others)]
        kind = ir.FunctionType(self.form.real, [self.form.real] * len(values))
        full = f"llvm.{name}.{self.form.suffix}"
        return self.new(
            self.builder.call(
                cgutils.get_or_insert_function(self.builder.module, kind, full), values
            )
        )

    def times_plus(self, factor: Any, term: Any) -> "_Real":
        """Return ``self * factor + term``, rounded once where the CPU has that instruction."""
        return self.call("fmuladd", factor, term)

    def poly(self, coefficients: tuple[float, ...]) -> "_Real":
        """Return the polynomial with `coefficients`, the constant first, by Horner's rule."""
        *rest, last = coefficients
        value = self.number(last)
        for coefficient in reversed(rest):
            value = value.times_plus(self, coefficient)
        return value

    def where(self, comparison: str, other: Any, yes: Any, no: Any) -> "_Real":
        """Return `yes` where ``self comparison other`` holds (for NaN never), else `no`."""
        mask = self.builder.fcmp_ordered(comparison, self.value, self.number(other).value)
        return self.new(self.builder.select(mask, self.number(yes).value, self.number(no).value))

    def clip(self, low: float, high: float) -> "_Real":
        """Return this number within [low, high]; NaN stays NaN."""
        below = self.where(">", high, high, self)
        return below.where("<", low, low, below)

    def bits(self) -> Any:
        """Return the bits of this number as an LLVM integer."""
        return self.builder.bitcast(self.value, self.form.integer)

    def from_bits(self, bits: Any) -> "_Real":
        """Return the number whose bits are `bits`."""
        return self.new(self.builder.bitcast(bits, self.form.real))


def _split_exponent(x: _Real) -> tuple[_Real, _Real, Any]:
    """Return n and r with ``x = n log(2) + r``, |r| <= log(2) / 2, and n + shift as bits."""
    # Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the lowest bits.
    shift = 1.5 * 2.0**x.form.mantissa
    shifted = x.times_plus(1 / math.log(2), shift)
    n = shifted - shift
    r = n.times_plus(-x.form.constants["ln2_high"], x)
    return n, n.times_plus(-x.form.constants["ln2_low"], r), shifted.bits()


def _expm1_small(r: _Real) -> _Real:
    return (r * r).times_plus(r.poly(r.form.constants["exp"]), r)


def _exp(x: _Real) -> _Real:
    form, builder = x.form, x.builder
    _, r, bits = _split_exponent(x.clip(*form.constants["exp_range"]))
    # 2^n as the product of two powers of about n / 2: neither over- nor underflows by itself.
    shift = form.bits_of(1.5 * 2.0**form.mantissa)
    twice_bias = ir.Constant(form.integer, 2 * form.bias - shift)
    place = ir.Constant(form.integer, form.mantissa)
    both = builder.add(bits, twice_bias)
    half = builder.lshr(both, ir.Constant(form.integer, 1))
    first = x.from_bits(builder.shl(half, place))
    second = x.from_bits(builder.shl(builder.sub(both, half), place))
    return (_expm1_small(r) + 1.0) * first * second


def _sigmoid(x: _Real) -> _Real:
    e = _exp(-x.call("fabs"))
    return x.where("<", 0.0, e, 1.0) / (e + 1.0)


def _tanh(x: _Real) -> _Real:
    # tanh |x| = -e / (2 + e) with e = exp(-2 |x|) - 1, which is 2^n expm1(r) + (2^n - 1).
    twice = (x.call("fabs") * -2.0).clip(-40.0, 0.0)
    _, r, bits = _split_exponent(twice)
    one_bits = ir.Constant(x.form.integer, x.form.bits_of(1.0))
    place = ir.Constant(x.form.integer, x.form.mantissa)
    power = x.from_bits(x.builder.add(x.builder.shl(bits, place), one_bits))
    e = power.times_plus(_expm1_small(r), power - 1.0)
    return (-e / (e + 2.0)).call("copysign", x)


def _log(x: _Real) -> _Real:
    form, builder = x.form, x.builder
    tiny = 2.0 ** (1 - form.bias)
    normal = x.where("<", tiny, x * 2.0**form.mantissa, x)
    correction = x.where("<", tiny, float(form.mantissa), 0.0)
    # x = 2^k (1 + f) with 1 + f between sqrt(1/2) and sqrt(2)
    root, one = form.bits_of(math.sqrt(0.5)), form.bits_of(1.0)
    bits = builder.add(normal.bits(), ir.Constant(form.integer, one - root))
    exponent = builder.lshr(bits, ir.Constant(form.integer, form.mantissa))
    shift = 2.0**form.mantissa
    exponent = builder.or_(exponent, ir.Constant(form.integer, form.bits_of(shift)))
    k = x.from_bits(exponent) - (shift + form.bias) - correction
    fraction = builder.and_(bits, ir.Constant(form.integer, (1 << form.mantissa) - 1))
    f = x.from_bits(builder.add(fraction, ir.Constant(form.integer, root))) - 1.0
    s = f / (f + 2.0)
    z = s * s
    square = f * f * 0.5
    tail = s * z.times_plus(z.poly(form.constants["log"]), square)
    low = k.times_plus(form.constants["ln2_low"], tail) - square + f
    value = k.times_plus(form.constants["ln2_high"], low)
    value = x.where("<", math.inf, value, x)  # inf and NaN
    return x.where("<=", 0.0, x.where("==", 0.0, -math.inf, math.nan), value)


def _function(name: str, write: Callable[[_Real], _Real], sentence: str) -> Any:
    """Return the intrinsic `name` whose code `write` writes."""

    def function(typingctx: Any, x: Any) -> Any:
        if x not in (types.float32, types.float64):
            raise TypingError(f"{name} takes a float32 or a float64, not {x}: convert it first")
        form = _FLOAT32 if x == types.float32 else _FLOAT64

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return write(_Real(builder, form, arguments[0])).value

        return x(x), codegen

    function.__name__ = function.__qualname__ = name
    function.__doc__ = sentence
    return intrinsic(function)


exp = _function("exp", _exp, "Return e to the power of `x`.")
tanh = _function("tanh", _tanh, "Return the hyperbolic tangent of `x`.")
sigmoid = _function("sigmoid", _sigmoid, "Return ``1 / (1 + exp(-x))``.")
log = _function("log", _log, "Return the natural logarithm of `x`.")


_PAIRS: Final[dict[Any, Any]] = {
    types.float32: types.int32,
    types.float64: types.int64,
    types.int32: types.float32,
    types.int64: types.float64,
}


def _bitcast(name: str, kinds: tuple[Any, ...], sentence: str) -> Any:
    """Return the intrinsic `name` that reads the bits of one of `kinds` as the other kind."""

    def function(typingctx: Any, x: Any) -> Any:
        if x not in kinds:
            raise TypingError(f"{name} takes {kinds[0]} or {kinds[1]}, not {x}: convert it first")
        to = _PAIRS[x]

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(to))

        return to(x), codegen

    function.__name__ = function.__qualname__ = name
    function.__doc__ = sentence
    return intrinsic(function)


to_bits = _bitcast(
    "to_bits", (types.float32, types.float64), "Return the bits of a float as an int as wide."
)
from_bits = _bitcast(
    "from_bits", (types.int32, types.int64), "Return the float as wide whose bits are those of `x`."
)


def gemm_address(dtype: Any) -> int:
    """Return the address of scipy's sgemm or dgemm, which kernels are given when they are called.

    Parameters
    ----------
    dtype
        float32 or float64.

    Returns
    -------
    int
        An address that holds in this process only: it must not be kept on disk.

    Raises
    ------
    TypeError
        If `dtype` is another one.
    RuntimeError
        If this scipy's BLAS counts in another integer than C's int.
    """
    name = {"float32": "sgemm", "float64": "dgemm"}.get(np.dtype(dtype).name)
    if name is None:
        raise TypeError(f"gemm is for float32 and float64, not for {np.dtype(dtype).name}")
    from scipy.linalg import cython_blas

    if repr(cython_blas.__pyx_capi__[name]).count(", int *") != 6:
        raise RuntimeError(f"scipy.linalg.cython_blas.{name} takes sizes that are no C int")
    return int(get_cython_function_address("scipy.linalg.cython_blas", name))


def _gemm_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Write the call of BLAS: row-major C = A B is column-major C' = B' A'."""
    address, trans_a, trans_b, m, n, k, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc = arguments
    kind_a, kind_b, kind_c = (signature.args[i] for i in (6, 9, 13))
    real, integer, char = context.get_value_type(kind_c.dtype), ir.IntType(32), ir.IntType(8)

    def kept(value: Any) -> Any:
        place = cgutils.alloca_once(builder, value.type)  # in the entry block: loops do not grow it
        builder.store(value, place)
        return builder.bitcast(place, cgutils.voidptr_t)

    def letter(flag: Any) -> Any:
        is_set = builder.icmp_signed("!=", flag, ir.Constant(flag.type, 0))
        return kept(
            builder.select(is_set, ir.Constant(char, ord("T")), ir.Constant(char, ord("N")))
        )

    def size(value: Any, least: int = 0) -> Any:
        value, low = builder.trunc(value, integer), ir.Constant(integer, least)
        return kept(builder.select(builder.icmp_signed("<", value, low), low, value))

    def pointer(kind: Any, array: Any, at: Any) -> Any:
        data = context.make_array(kind)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [at]), cgutils.voidptr_t)

    values = [letter(trans_b), letter(trans_a), size(n), size(m), size(k)]
    values += [kept(ir.Constant(real, 1.0)), pointer(kind_b, b, b_at), size(ldb, 1)]
    values += [pointer(kind_a, a, a_at), size(lda, 1)]
    values += [kept(beta), pointer(kind_c, c, c_at), size(ldc, 1)]
    kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] * len(values))
    builder.call(builder.inttoptr(address, kind.as_pointer()), values)
    return context.get_dummy_value()


@intrinsic
def gemm(
    typingctx: Any,
    address: Any,
    trans_a: Any,
    trans_b: Any,
    m: Any,
    n: Any,
    k: Any,
    a: Any,
    a_at: Any,
    lda: Any,
    b: Any,
    b_at: Any,
    ldb: Any,
    beta: Any,
    c: Any,
    c_at: Any,
    ldc: Any,
) -> Any:
    """Set C to ``op(A) op(B) + beta C`` by the BLAS function at `address`; the GIL is not needed.

    op(A) is (m, k), op(B) is (k, n) and C is (m, n), row by row in memory: element (i, j) of A is
    ``a.ravel()[a_at + i * lda + j]``, and so for B and C; `trans_a` or `trans_b` not 0 transposes.
    The arrays are of float32 or of float64, all three alike and C-contiguous, of any number of
    axes. Sizes are below 2^31. Where `beta` is 0, C is not read. Nothing is checked at run time.
    """
    for name, array in (("a", a), ("b", b), ("c", c)):
        if not (isinstance(array, types.Array) and array.layout == "C"):
            raise TypingError(f"gemm's {name} must be a C-contiguous array, not {array}")
        if array.dtype != a.dtype or array.dtype not in (types.float32, types.float64):
            raise TypingError(
                "gemm's a, b and c must be all float32 or all float64: "
                f"a is {a.dtype}, {name} is {array.dtype}"
            )
    if not c.mutable:
        raise TypingError("gemm writes to c, which is a read-only array")
    for name, value in zip(
        (
            "address",
            "trans_a",
            "trans_b",
            "m",
            "n",
            "k",
            "a_at",
            "lda",
            "b_at",
            "ldb",
            "c_at",
            "ldc",
        ),
        (address, trans_a, trans_b, m, n, k, a_at, lda, b_at, ldb, c_at, ldc),
        strict=True,
    ):
        if not isinstance(value, types.Integer | types.Boolean):
            raise TypingError(f"gemm's {name} must be an integer, not {value}")
    if not isinstance(beta, types.Number):
        raise TypingError(f"gemm's beta must be a number, not {beta}")
    i = types.int64
    return types.void(i, i, i, i, i, i, a, i, i, b, i, i, c.dtype, c, i, i), _gemm_code
