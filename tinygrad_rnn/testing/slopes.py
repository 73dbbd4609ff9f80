"""Slopes of a subject along one direction for each block of its inputs, all outputs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from .estimate import STEP, ridders
from .subject import Subject

EPS = float(np.finfo(np.float64).eps)
OUTPUTS = 8  # so many blocks of the outputs have a cotangent of their own


@dataclass(frozen=True)
class Part:
    """A block of the inputs or outputs: a label, and where its elements lie."""

    label: str
    at: tuple[tuple[int, Any], ...]  # (number of the array, index)

    def fill(self, arrays: Sequence[Array], rng: np.random.Generator) -> list[Array | None]:
        """Return random weights for the elements of the block, None for the other arrays."""
        filled: list[Array | None] = [None] * len(arrays)
        for k, index in self.at:
            if filled[k] is None:
                filled[k] = np.zeros(arrays[k].shape)
            there = filled[k]
            assert there is not None
            w = weights(there[index].shape, rng)
            there[index] = w if arrays[k].dtype.itemsize >= 8 else w.astype(arrays[k].dtype)
        return filled


def weights(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return random numbers of either sign, none of them near 0, with all their digits."""
    return np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape))


def input_parts(subject: Subject, wrt: Sequence[int], blocks: str) -> list[Part]:
    """Return the blocks of the inputs to differentiate by."""
    if blocks not in ("auto", "one", "full"):
        raise ValueError(f"blocks is auto, one or full, got {blocks!r}")
    if blocks == "one":
        return [Part("all inputs", tuple((k, ...) for k in wrt))]
    if blocks == "full":
        return [
            Part(f"{subject.inputs[k]}[{', '.join(map(str, i))}]", ((k, i),))
            for k in wrt
            for i in np.ndindex(subject.arrays[k].shape)
        ]
    return [
        Part(label, ((k, index),))
        for k in wrt
        for label, index in subject.blocks(k)
        if subject.arrays[k][index].size
    ]


def output_parts(subject: Subject, ys: Sequence[Array], outputs: str) -> list[Part]:
    """Return the blocks of the outputs that get a cotangent: each, all together, or both."""
    if outputs not in ("each+all", "each", "all"):
        raise ValueError(f"outputs is each+all, each or all, got {outputs!r}")
    floating = [j for j, y in enumerate(ys) if y.dtype.kind in "fc" and y.size]
    each = [
        Part(label, ((j, i),)) for j in floating for label, i in subject.output_blocks(j, ys[j])
    ]
    every = [Part("all outputs", tuple((j, ...) for j in floating))] if floating else []
    if len(each) > OUTPUTS:  # the first, the last and some between
        chosen = {round(k * (len(each) - 1) / (OUTPUTS - 1)) for k in range(OUTPUTS)}
        last = {len(each) - k for k in range(1, 4)}  # final states come last
        each = [each[k] for k in sorted(chosen | last)]
    if outputs == "all" or len(each) == 1:
        return every if outputs == "all" else each
    return each + (every if outputs == "each+all" else [])


class Slopes:
    """References for <u, dy/dx v>, for every cotangent u and every direction v of a check."""

    def __init__(
        self,
        subject: Subject,
        parts: Sequence[Part],
        directions: Sequence[list[Array | None]],
        cotangents: Sequence[list[Array | None]],
    ) -> None:
        self.subject, self.parts = subject, parts
        self.directions, self.cotangents = directions, cotangents
        self.high = [in_double(a) for a in subject.arrays]
        self.raised: Exception | None = None  # the last error of the function beside the point

    def step_of(self, direction: Sequence[Array | None]) -> float:
        """Return the first step of differences along a direction: relative to what it moves."""
        sizes = [
            float(np.abs(a[v != 0]).max(initial=0))
            for a, v in zip(self.high, direction, strict=True)
            if v is not None
        ]
        return 0.05 * max(1.0, *sizes)

    def along(
        self, direction: Sequence[Array | None], cotangents: Sequence[list[Array | None]]
    ) -> Callable[[Any], Array]:
        """Return t -> <u, f(x + t v)> for every cotangent u; NaN where f raises."""

        def along(t: Any) -> Array:
            try:
                return dots(cotangents, self.subject.forward(*self._moved(direction, t)))
            except Exception as error:
                if isinstance(t, complex):
                    raise
                self.raised = error
                return np.full(len(cotangents), np.nan)

        return along

    def each_along(
        self, direction: Sequence[Array | None], us: Sequence[Array | None]
    ) -> Callable[[Any], Array]:
        """Return t -> u f(x + t v), element by element: the terms of <u, f>."""

        def each(t: Any) -> Array:
            try:
                ys = self.subject.forward(*self._moved(direction, t))
            except Exception:
                return np.full(sum([np.count_nonzero(u) for u in us if u is not None]), np.nan)
            terms = [(u * y)[u != 0] for u, y in zip(us, ys, strict=True) if u is not None]
            return np.concatenate([term.ravel() for term in terms])

        return each

    def _moved(self, direction: Sequence[Array | None], t: Any) -> list[Array]:
        return [a if v is None else a + t * v for a, v in zip(self.high, direction, strict=True)]

    def by_complex_step(self) -> tuple[Array, Array]:
        """Return the slopes (cotangents, parts) and what rounding of their sums may be."""
        columns, errors = [], []
        sizes = [[None if u is None else np.abs(u) for u in us] for us in self.cotangents]
        for v in self.directions:
            moved = self._moved(v, 1j * STEP)
            with np.errstate(all="ignore"):
                ys = [np.imag(y) / STEP for y in self.subject.forward(*moved)]
            columns.append(dots(self.cotangents, ys))
            errors.append(16 * EPS * dots(sizes, [np.abs(y) for y in ys]))
        return np.stack(columns, 1), np.stack(errors, 1)

    def by_ridders(self) -> tuple[Array, Array]:
        """Return the slopes and the errors they may have."""
        found = [ridders(self.along(v, self.cotangents), self.step_of(v)) for v in self.directions]
        return np.stack([v for v, _ in found], 1), np.stack([e for _, e in found], 1)

    def by_difference(self) -> tuple[Array, Array]:
        """Return f(x + v) - f(x): exact for what is linear; only rounding remains."""
        columns, errors = [], []
        for v in self.directions:
            along = self.along(v, self.cotangents)
            after, before = along(1.0), along(0.0)
            columns.append(after - before)
            size = np.maximum(np.abs(after), np.abs(before)) + self._size(v)
            errors.append(32 * EPS * size)
        return np.stack(columns, 1), np.stack(errors, 1)

    def _size(self, direction: Sequence[Array | None]) -> Array:
        """Return sum |u| |y|: what rounding of the differences is relative to."""
        ys = self.subject.forward(*self.high)
        sizes = [[None if u is None else np.abs(u) for u in us] for us in self.cotangents]
        return dots(sizes, [np.abs(y) for y in ys])

    def agree_with_ridders(self, slopes: Array) -> bool:
        """Whether differences along all directions at once give the sum of these slopes."""
        direction = together(self.directions)
        along, h = self.along(direction, self.cotangents), self.step_of(direction)
        want, size = slopes.sum(1), np.abs(slopes).sum(1)
        for shrink in (1.0, 0.1, 0.01):
            value, error = ridders(along, h * shrink, levels=4, settled=1e-3)
            if np.isfinite(error).all() and (np.abs(value - want) <= error + 1e-7 * size).all():
                return True
        return False


def in_double(a: Array) -> Array:
    """Return floating numbers in float64: the same ones."""
    return a.astype(np.float64) if a.dtype.kind == "f" else a


def together(directions: Sequence[Sequence[Array | None]]) -> list[Array | None]:
    """Return the sum of directions."""
    columns = [[v for v in column if v is not None] for column in zip(*directions, strict=True)]
    return [sum(column[1:], column[0]) if column else None for column in columns]


def dots(cotangents: Sequence[Sequence[Array | None]], ys: Sequence[Array]) -> Array:
    """Return <u, y>, summed over the outputs, for each cotangent."""
    sums = [
        sum([np.sum(u * y) for u, y in zip(us, ys, strict=True) if u is not None])
        for us in cotangents
    ]
    return np.asarray(sums)
