"""What every generated numba kernel starts with: SIMD exp, tanh, sigmoid and log, and calls.

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
from numba import njit as njit  # for the kernels
from numba.core import cgutils, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.errors import TypingError
from numba.extending import intrinsic


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


def _call(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Write the call of the function at the first argument; arrays become pointers."""
    address, *rest = arguments
    values = [
        context.make_array(kind)(context, builder, value).data
        if isinstance(kind, types.Array)
        else value
        for kind, value in zip(signature.args[1:], rest, strict=True)
    ]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(builder.inttoptr(address, kind.as_pointer()), values)
    return context.get_dummy_value()


def _calls(*kinds: Any) -> Any:
    i = types.int64
    return types.void(i, *[i if isinstance(k, types.Integer | types.Boolean) else k for k in kinds])


# The functions of products.py, by their addresses: nothing is checked at run time.


@intrinsic
def pack(
    typingctx: Any, address: Any, inner: Any, columns: Any, w: Any, w_at: Any, w_row: Any,
    w_column: Any, to: Any, to_at: Any,
) -> Any:  # fmt: skip
    """Pack weights."""
    return _calls(inner, columns, w, w_at, w_row, w_column, to, to_at), _call


@intrinsic
def product(
    typingctx: Any, address: Any, rows: Any, inner: Any, columns: Any, a: Any, a_at: Any,
    a_row: Any, packed: Any, packed_at: Any, c: Any, c_at: Any, c_row: Any,
) -> Any:  # fmt: skip
    """Set rows of C to rows of A times packed weights."""
    return _calls(rows, inner, columns, a, a_at, a_row, packed, packed_at, c, c_at, c_row), _call


@intrinsic
def outer(
    typingctx: Any, address: Any, rows: Any, m: Any, n: Any, a: Any, a_at: Any, a_row: Any, b: Any,
    b_at: Any, b_row: Any, c: Any, part: Any, parts: Any,
) -> Any:  # fmt: skip
    """Set columns of C to the sum over rows of A[i]^T B[i]."""
    return _calls(rows, m, n, a, a_at, a_row, b, b_at, b_row, c, part, parts), _call


U = np.uint64  # as an index it cannot be negative, so that no check stands in the way of SIMD


class Apart(CompilerBase):
    """Compiles functions of which no two arrays overlap."""

    def define_pipelines(self) -> Any:
        """Return numba's own pipeline."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]
