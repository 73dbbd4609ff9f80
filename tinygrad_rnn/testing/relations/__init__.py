"""Relations between runs that hold whatever the numbers are; each callable alone and by name.

Engine relations take a function of Tensors and its arrays, and without them run over a written
set of cases; layer relations take one ``RNNConfig``.  They raise a ``GradientError`` that says
the relation, the block, the place and both numbers.

>>> from tinygrad_rnn import nn
>>> from tinygrad_rnn.testing import relations
>>> from tinygrad_rnn.testing.configs import RNNConfig
>>> cfg = RNNConfig(nn.LSTM, T=3, N=2, D=2, H=3)
>>> [name for name, r in RELATIONS.items() if r.kind == "layer" and r.needs(cfg) is None][:4]
['carry', 'unroll', 'causality', 'anti_truncation']
>>> relations.check("causality", cfg).verdict.value
'right'
>>> relations.check("scatter").verdict.value
'right'
"""

from __future__ import annotations

from typing import Any

from ..report import GradReport
from . import base
from .base import Relation
from .engine import (
    accumulation,
    adjoint,
    building_order,
    chain,
    fan_out,
    layout,
    linearity,
    release,
    shapes_and_dtypes,
    symmetry,
)
from .gates import closed_form, gate_limits, reparametrisation, sign_symmetry, unit_permutation
from .layers import (
    anti_truncation,
    batch,
    carry,
    causality,
    direction,
    padding,
    sharing,
    stacking,
    unroll,
)
from .structures import broadcasting, euler, invariance, scatter
from .training import dtype, initial_state, optimiser_step

RELATIONS: dict[str, Relation] = dict(sorted(base.RELATIONS.items(), key=lambda r: r[1].number))


def check(name: str, *args: Any, **settings: Any) -> GradReport:
    """Run the relation of that name.

    Raises
    ------
    KeyError
        For a name that is none.
    GradientError
        Where a claim of it fails.

    Examples
    --------
    >>> check("euler").verdict.value
    'right'
    """
    if name not in RELATIONS:
        raise KeyError(f"no relation is called {name!r}; there are {', '.join(RELATIONS)}")
    return RELATIONS[name](*args, **settings)


__all__ = [
    "RELATIONS",
    "Relation",
    "accumulation",
    "adjoint",
    "anti_truncation",
    "batch",
    "broadcasting",
    "building_order",
    "carry",
    "causality",
    "chain",
    "check",
    "closed_form",
    "direction",
    "dtype",
    "euler",
    "fan_out",
    "gate_limits",
    "initial_state",
    "invariance",
    "layout",
    "linearity",
    "optimiser_step",
    "padding",
    "release",
    "reparametrisation",
    "scatter",
    "shapes_and_dtypes",
    "sharing",
    "sign_symmetry",
    "stacking",
    "symmetry",
    "unit_permutation",
    "unroll",
]
