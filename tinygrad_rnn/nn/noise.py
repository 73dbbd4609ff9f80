"""What training multiplies and keeps at random: recurrent dropout and zoneout."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..errors import StateError
from ..functional import dropout_mask
from ..tensor import Tensor
from .cells import is_real
from .states import State, structure

Zoneout = float | tuple[float, ...]


class Noise:
    """The random numbers of one call: the same for the same seed, wherever one begins to draw.

    Each layer, direction and step has a stream of its own, so that steps can be run again.
    """

    __slots__ = ("dropout", "seed", "zoneout")

    def __init__(self, seed: Any, dropout: float, zoneout: Zoneout) -> None:
        self.seed, self.dropout, self.zoneout = seed, dropout, zoneout

    def stream(self, *place: int) -> np.random.Generator:
        """Return the generator that belongs to a place: (layer,) or (layer, direction, step)."""
        # NumPy fills a short list with zeros: without its length, (0,) and (0, 0) would be one
        return np.random.default_rng([self.seed, len(place), *place])

    def recurrent_mask(self, h: Tensor, *place: int) -> Tensor | None:
        """Return what h(t-1) is multiplied with at every step; None where nothing is dropped."""
        if not self.dropout or self.seed is None:
            return None
        mask = dropout_mask(h.shape, self.dropout, h.dtype, self.stream(*place))
        return Tensor(mask, name="recurrent_mask")

    def zone_out(self, new: State, old: State, *place: int) -> State:
        """Return the state after a step, of which some units keep what they had before it."""
        rng = None if self.seed is None else self.stream(*place)
        rates = self.zoneout
        if not isinstance(rates, tuple):
            return _zone_out(new, old, rates, rng)
        if not isinstance(new, tuple) or len(new) != len(rates):
            raise StateError(
                f"zoneout={rates} must have one rate for each part of the state {structure(new)}"
            )
        return tuple([_zone_out(*part, rng) for part in zip(new, old, rates, strict=True)])


def _zone_out(new: State, old: State, p: float, rng: np.random.Generator | None) -> Any:
    """Keep each unit of `old` with probability `p`; without a generator take the mean."""
    if isinstance(new, tuple):
        return tuple([_zone_out(a, b, p, rng) for a, b in zip(new, old, strict=True)])
    if p == 0:
        return new
    mixed = new + (old - new) * p if rng is None else ops.where(rng.random(new.shape) < p, old, new)
    mixed.name = new.name
    return mixed


def check_rates(who: str, name: str, rates: Any, several: bool = False) -> None:
    """Raise where a rate, or one of several, is no probability."""
    for p in rates if several and isinstance(rates, tuple) else (rates,):
        if not is_real(p) or not 0 <= p <= 1:
            raise ValueError(f"{who}: {name}={rates!r} is not in [0, 1]")
