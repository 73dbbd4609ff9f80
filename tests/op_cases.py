"""The primitives by name, each with the cases that the kit of gradient tests draws for it."""

from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing.cases import Case, flows, grid
from tinygrad_rnn.testing.op_cases import INDICES, draw_inputs, getitem_case
from tinygrad_rnn.testing.registry import spec_of
from tinygrad_rnn.testing.strategies import BROADCASTS, MATMULS, rngs

__all__ = [
    "ALL", "BINARY", "BROADCASTS", "CASES", "COMPARISONS", "DIFFERENTIABLE", "INDICES", "MATMULS",
    "RNGS", "Case", "draw_inputs", "flows", "getitem_case", "grid",
]  # fmt: skip

ALL = dict(OPS)  # what importing the package declares
COMPARISONS = [name for name, op in ALL.items() if not op.differentiable]
DIFFERENTIABLE = sorted(set(ALL) - set(COMPARISONS))
BINARY = sorted(name for name, op in ALL.items() if op.signature == "(),()->()")
CASES = {name: spec_of(op).cases for name, op in ALL.items()}
RNGS = rngs()
