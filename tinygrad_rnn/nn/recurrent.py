"""Layers that unroll any cell over time: stacked, in both directions, over ragged batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .. import ops
from ..arrays import Array
from ..errors import ShapeError, StateError
from ..functional import dropout_mask, stack
from ..inspection import where
from ..memory import release
from ..scope import NEEDED, Call, Mask, Place, scope
from ..tensor import Tensor, next_order
from .cells import Cell, is_whole
from .noise import Noise, Zoneout, check_rates
from .reading import DIRECTIONS, Input, Reading, cut
from .recompute import Runner, check_every, segmented
from .states import (
    State,
    alike,
    as_tensors,
    choose,
    finite_past_end,
    first_of,
    holds_tensors,
    keep_past_end,
    leaves,
    map_state,
    name_initial,
    name_parts,
    nest,
    structure,
    zero_past_end,
)  # fmt: skip

MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: ops.concat(a, b, axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) * 0.5,
}
Trace = dict[str, Tensor]
_SEEDS = 1 << 62
_WORTH_RELEASING = 1 << 12  # elements of an output; the walk over a step costs as much as 10 ops


class Recurrent(Reading):
    """A layer that runs cells over time: any cell, any number of layers, one direction or both.

    Parameters
    ----------
    cells : Cell, or list of them
        One for each layer, bottom first; for two directions each entry is a pair
        ``(forward, reverse)``. Layers may differ in size and in kind.
    batch_first : bool
        Whether input and output are (N, T, D) instead of (T, N, D); states never are.
    dropout : float
        Probability of zeroing an element of the output of each layer but the last, in training.
    merge : {"concat", "sum", "mul", "ave"} or None
        What becomes of the outputs of two directions, as in Keras. None, for one layer, leaves
        them apart: ``out`` is a pair.
    recurrent_dropout : float
        Probability of dropping a unit of h(t-1) in the products with ``W_h``, in training; one
        mask for all steps of a call (Gal and Ghahramani 2016).
    zoneout : float, or tuple of one for each part of the state
        Probability that a unit of the state keeps its value from the step before, in training,
        drawn anew at each step; otherwise its mean is taken (Krueger et al. 2017).
    learn_state : bool
        Whether the state before the first step is learned: parameters ``h0`` (and ``c0``).
    checkpoint_every : int or "sqrt", optional
        Keep the states after every k steps only, and run the steps between them again for the
        gradients (Chen et al. 2016): memory O(T/k + k) for a third more time; "sqrt" takes
        k = sqrt(T). Outputs are the same to the bit. With a trace, inside ``record()`` and
        ``debug()`` all steps are kept.
    rng : int or numpy.random.Generator, optional
        For what is dropped.

    Attributes
    ----------
    L0, L1, ... : dict of str to Cell
        The cells of each layer by direction, ``{"fwd": cell, "rev": cell}``.
    mask_seed : int or None
        Freezes what is dropped: the same masks at every call. None draws new ones.

    Examples
    --------
    >>> from tinygrad_rnn.nn import GRUCell, RNNCell
    >>> layer = Recurrent([RNNCell(3, 4, rng=0), GRUCell(4, 2, rng=0)])
    >>> out, (h_rnn, h_gru) = layer(np.ones((5, 1, 3)))
    >>> out.shape, h_rnn.shape, h_gru.shape
    ((5, 1, 2), (1, 4), (1, 2))
    """

    def __init__(
        self,
        cells: Cell | tuple[Cell, Cell] | Sequence[Cell | tuple[Cell, Cell]],
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        merge: str | None = "concat",
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        learn_state: bool = False,
        checkpoint_every: int | str | None = None,
        rng: Any = None,
    ) -> None:
        entries = list(cells) if isinstance(cells, list) else [cells]
        pairs = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
        who = type(self).__name__
        _check_merge(who, merge, pairs)
        _check_cells(who, pairs, merge)
        check_rates(who, "dropout", dropout)
        check_rates(who, "recurrent_dropout", recurrent_dropout)
        check_rates(who, "zoneout", zoneout, several=True)
        check_every(who, checkpoint_every)
        self.batch_first, self.dropout, self.merge = batch_first, dropout, merge
        self.recurrent_dropout, self.zoneout = recurrent_dropout, zoneout
        self.checkpoint_every = checkpoint_every
        self.num_layers, self.num_directions = len(pairs), len(pairs[0])
        self.rng, self.mask_seed = np.random.default_rng(rng), None
        for k, pair in enumerate(pairs):
            setattr(self, f"L{k}", dict(zip(DIRECTIONS, pair, strict=False)))
        if learn_state:
            for _, _, cell in self.cells():
                cell.learn_state()

    @property
    def output_size(self) -> int:
        """Features of the output of a step: H, or 2 H where two directions are concatenated."""
        return _width([c for k, _, c in self.cells() if k == self.num_layers - 1], self.merge)

    def cells(self) -> Iterator[tuple[int, str, Cell]]:
        """Yield (layer, direction, cell), layer by layer, forward before reverse."""
        for k in range(self.num_layers):
            for direction, cell in getattr(self, f"L{k}").items():
                yield k, direction, cell

    def forward(
        self,
        x: Any = None,
        state: State = None,
        *,
        lengths: Any = None,
        steps: int | None = None,
        trace: bool = False,
    ) -> Any:
        """Run the cells over a sequence.

        Parameters
        ----------
        x : array_like or Tensor (T, N, D) or (T, D), list of arrays (T_n, D), or None
            A batch, one sequence, or ragged sequences; None runs `steps` steps without input.
            Plain numbers are converted to the dtype of the layer.
        state : optional
            As it is returned; zero by default.  Without a batch, without the axis N.
        lengths : array_like of int (N,), optional
            How many steps of each sequence are valid; 0 is allowed.  Beyond them the output is
            zero, the last *valid* state is returned, the reverse direction starts at each
            sequence's own end, and x counts as 0.
        steps : int, optional
            T, with ``x=None``.
        trace : bool
            Whether to return what the cells marked.

        Returns
        -------
        out : Tensor (T, N, H) or (T, H), or a list of Tensors (T_n, H) for a list
            H is that of the last layer, times the directions.
        state
            That of the one cell, or a tuple of the cells' states, forward before reverse.
        trace : dict of str to Tensor
            Only with ``trace=True``: ``trace["L0.fwd.f"]`` of shape (T, N, H), differentiable.
            It holds what was marked: where all lengths are 0 no step ran, and it is empty.
            A mark without a batch (see ``Cell``), as a learned leak (H,), gives (T, H).

        Raises
        ------
        ShapeError
            For wrong ranks, sizes or lengths, T = 0 and N = 0.
        StateError
            For a state of the wrong structure.
        """
        state = nest(state)
        given = self._read(x, state, lengths, steps)
        here = scope()
        call = here.place.call if here.place and here.place.step is None else Call(self.path)
        call.steps = T = given.steps
        states = self._split_state(state, given)
        noise = self._noise()
        traced: Trace | None = {} if trace else None
        run = self._runner(T, trace)
        finals: list[State] = []
        before = here.place, here.marks, here.mask
        try:
            inputs: Any = given.x if run else [None] * T if given.x is None else cut(given.x)
            for k in range(self.num_layers):
                sides = []
                for direction, cell in getattr(self, f"L{k}").items():
                    loop = partial(
                        self._unroll, cell, place=(call, k, direction), valid=given.valid,
                        noise=noise, traced=traced,
                    )  # fmt: skip
                    if run is None:
                        side, final = loop(inputs, states.pop(0))
                    else:
                        side, final = run(cell, loop, inputs, states.pop(0), direction, given)
                    if given.valid is not None and (k < self.num_layers - 1 or self.merge == "mul"):
                        side = finite_past_end(side, given.valid)
                    sides.append(side)
                    finals.append(final)
                here.place, here.marks = Place(call), None
                if self.merge is None and len(sides) > 1:
                    break
                inputs = self._merge(sides)
                if k < self.num_layers - 1 and self.dropout and self.training:
                    inputs = self._drop(inputs, T, noise.stream(k))
            out = (
                self._join(inputs, given)
                if self.merge or len(sides) == 1
                else tuple([self._join(side, given) for side in sides])
            )
            end = self._join_state(finals, given)
        finally:
            here.place, here.marks, here.mask = before
        if traced is None:
            return out, end
        for name, v in traced.items():
            traced[name] = v[:, 0] if given.unbatched and v.ndim > 2 and v.shape[1] == 1 else v
        return out, end, traced

    def _noise(self) -> Noise:
        """Return what this call draws at random; the generator moves only where it is needed."""
        seed = None
        between = self.dropout and self.num_layers > 1
        if self.training and (between or self.recurrent_dropout or self.zoneout):
            seed = self.mask_seed
            if seed is None:
                seed = int(self.rng.integers(_SEEDS))
            elif not is_whole(seed) or seed < 0:
                raise ValueError(f"mask_seed={seed!r} must be None or a whole number, 0 or more")
        return Noise(seed, self.recurrent_dropout, self.zoneout)

    def _runner(self, T: int, trace: bool) -> Runner | None:
        """Return what runs a cell over all steps at once; None runs step by step."""
        every = None if trace else self._segment(T)
        return None if every is None else partial(segmented, every=every)

    def _segment(self, T: int) -> int | None:
        """Return how many steps are run between two states that are kept; None keeps all."""
        here, every = scope(), self.checkpoint_every
        if every is None or here.mode != NEEDED or here.frozen is not None:
            return None
        return math.ceil(math.sqrt(T)) if every == "sqrt" else int(every)

    def _merge(self, sides: list[Any]) -> Any:
        """Return the outputs of a layer from those of its directions: of each step, or whole."""
        first, *others = sides
        if not others:
            return first
        merge = MERGES[str(self.merge)]
        if isinstance(first, Tensor):
            return merge(*sides)
        return [merge(*parts) for parts in zip(*sides, strict=True)]

    def _drop(self, inputs: Any, T: int, rng: np.random.Generator) -> Any:
        """Return the outputs of a layer with dropout, for the layer above."""
        first = inputs[0]
        mask = dropout_mask((T, *first.shape), self.dropout, first.dtype, rng)
        if isinstance(inputs, Tensor):
            return inputs * mask
        return [y * m for y, m in zip(inputs, mask, strict=True)]

    def _unroll(
        self,
        cell: Cell,
        inputs: list[Tensor | None],
        state: State,
        start: int = 0,
        *,
        place: tuple[Call, int, str],
        valid: Array | None,
        noise: Noise,
        traced: Trace | None,
    ) -> tuple[list[Any], State]:
        """Run one cell over steps; return its outputs in the order of time, and its state."""
        here, T = scope(), len(inputs)
        at = place[1], DIRECTIONS.index(place[2])
        N, counts = 1, [0]
        if valid is not None:
            valid = valid[start : start + T]
            N, counts = valid.shape[1], valid.sum(axis=1).tolist()  # how many are inside
        outputs: list[Any] = [None] * T
        marked: list[dict[str, Any]] = [{}] * T
        before, here.mask = here.mask, None
        mask = noise.recurrent_mask(first_of(state), *at)
        if mask is not None:
            here.mask = Mask(mask)
        first = True
        for t in reversed(range(T)) if place[2] == "rev" else range(T):
            here.place = Place(*place, start + t)
            count = N if valid is None else counts[t]
            if not count:  # every sequence has ended
                continue
            if traced is not None:
                here.marks = marked[t] = {}
            since = next_order()
            result = cell.step(inputs[t], state)
            if (
                first
                or type(result) is not tuple
                or len(result) != 2
                or not alike(result[1], state)
            ):
                check_step(cell, result, state)
            y, new = result
            name_parts(new, cell.states)
            if first:
                name_initial(state, new)
                check_mask(cell, here.mask)
                first = False
            if noise.zoneout:
                kept = noise.zone_out(new, state, *at, start + t)
                y, new = first_of(kept) if y is first_of(new) else y, kept
            if valid is not None and count < N:
                new = keep_past_end(Tensor(valid[t, :, None]), new, state)
            outputs[t], state = y, new
            if (
                y.requires_grad
                and y.size >= _WORTH_RELEASING
                and here.mode == NEEDED
                and here.frozen is None
            ):
                release([y, *leaves(new)], since)
        here.place, here.marks, here.mask = Place(place[0]), None, before
        blank = next((y for y in outputs if y is not None), None)
        if blank is None:  # all sequences have length 0
            blank = Tensor(np.zeros((len(valid[0]), cell.hidden_size), cell.dtype))  # type: ignore[index]
        outputs = [Tensor(np.zeros_like(blank.data)) if y is None else y for y in outputs]
        if traced is not None:
            for name in dict.fromkeys([name for marks in marked for name in marks]):
                traced[f"L{place[1]}.{place[2]}.{name}"] = _stack_marks(name, marked, valid)
        return outputs, state

    # --- states

    def _split_state(self, state: State, given: Input) -> list[State]:
        """Return the initial state of every cell."""
        cells = list(self.cells())
        if state is None:
            parts: Sequence[Any] = [None] * len(cells)
        elif len(cells) == 1:
            parts = [state]
        elif isinstance(state, tuple) and len(state) == len(cells):
            parts = state
        else:
            raise StateError(
                f"{type(self).__name__}: the state must be a tuple of {len(cells)} states, "
                f"one for each layer and direction, got {structure(state)}"
            )
        return [
            self._initial(cell, part, f"L{k}.{direction}", given)
            for (k, direction, cell), part in zip(cells, parts, strict=True)
        ]

    def _initial(self, cell: Cell, state: Any, place: str, given: Input) -> State:
        template = cell.initial_state(given.batch)
        if state is None:
            return cell.first_state(given.batch)
        state = as_tensors(state, cell.dtype)
        if given.unbatched:
            state = map_state(lambda s: s.reshape((1, *s.shape)), state)
        if structure(state) != structure(template):
            raise StateError(
                f"{type(self).__name__}: the state of {place} is {structure(state)}, "
                f"expected {structure(template)}" + (" (with N=1)" if given.unbatched else "")
            )
        return state

    def _join_state(self, finals: list[State], given: Input) -> State:
        if given.unbatched:
            finals = [map_state(lambda s: s.reshape(s.shape[1:]), s) for s in finals]
        return finals[0] if len(finals) == 1 else tuple(finals)

    def _join(self, outputs: Any, given: Input) -> Any:
        """Return the outputs as they are wanted: stacked, or a list of sequences."""
        if given.unbatched:
            if isinstance(outputs, Tensor):
                return outputs.reshape((len(outputs), *outputs.shape[2:]))
            return stack([y.reshape(y.shape[1:]) for y in outputs])
        axis = 1 if self.batch_first and given.lengths is None else 0
        if isinstance(outputs, Tensor):
            out = outputs.transpose(1, 0, *range(2, outputs.ndim)) if axis else outputs
        else:
            out = stack(outputs, axis=axis)
        if given.lengths is not None:
            return [out[: int(n), k] for k, n in enumerate(given.lengths)]
        if given.valid is not None:
            out = zero_past_end(out, given.valid.T if axis else given.valid)
        return out


def _width(cells: Sequence[Any], merge: str | None) -> int:
    """Return how many features a layer of these cells puts out."""
    return sum([c.hidden_size for c in cells]) if merge == "concat" else int(cells[0].hidden_size)


def _check_cells(who: str, pairs: list[tuple[Any, ...]], merge: str | None) -> None:
    """Raise where cells do not make a stack."""
    if not pairs:
        raise ValueError(f"{who}: a list of cells, one for each layer, must not be empty")
    for k, pair in enumerate(pairs):
        if len(pair) != len(pairs[0]) or len(pair) not in (1, 2):
            raise ValueError(
                f"{who}: layer {k} has {len(pair)} directions, layer 0 {len(pairs[0])}"
            )
        for cell in pair:
            if not isinstance(cell, Cell):
                raise TypeError(f"{who}: layer {k} holds {type(cell).__name__}, which is no Cell")
    for k, (below, pair) in enumerate(pairwise(pairs)):
        width = _width(below, merge)
        for cell in pair:
            if cell.input_size != width:
                raise ShapeError(
                    f"{who}: layer {k} gives {width} features, "
                    f"but a cell of layer {k + 1} takes input_size={cell.input_size}"
                )


def _check_merge(who: str, merge: Any, pairs: list[tuple[Any, ...]]) -> None:
    """Raise where the outputs of two directions cannot be merged in that way."""
    if merge is not None and (not isinstance(merge, str) or merge not in MERGES):
        words = ", ".join([repr(word) for word in MERGES])
        raise ValueError(f"{who}: merge={merge!r} is not one of {words} or None")
    if merge is None and len(pairs) > 1 and len(pairs[0]) > 1:
        raise ValueError(
            f"{who}: merge=None leaves two outputs apart, which no layer above could read: "
            f"it goes with one layer, not with {len(pairs)}"
        )
    if merge in ("sum", "mul", "ave"):
        for k, pair in enumerate(pairs):
            sizes = [getattr(cell, "hidden_size", None) for cell in pair]
            if len(set(sizes)) > 1:
                raise ShapeError(
                    f"{who}: merge={merge!r} needs directions of one size; layer {k} has {sizes}"
                )


def check_mask(cell: Cell, mask: Mask | None) -> None:
    """Raise where recurrent dropout would do nothing."""
    if mask is not None and not mask.asked:
        raise StateError(
            f"{type(cell).__name__}.step: recurrent_dropout has no effect, for the step multiplies "
            f"h by itself; write self.dropped(h) @ self.W_h, or use self.affine(x, h)"
        )


def check_step(cell: Cell, result: Any, state: State) -> None:
    """Raise where a step does not return an output and a state like the one it was given."""
    if not isinstance(result, tuple) or len(result) != 2 or not holds_tensors(result):
        parts = result if isinstance(result, tuple) else (result,)
        raise StateError(
            f"{type(cell).__name__}.step{where()}: returned "
            f"{', '.join([type(p).__name__ for p in parts])}; expected Tensors (output, state)"
        )
    if structure(result[1]) != structure(state):
        raise StateError(
            f"{type(cell).__name__}.step{where()}: returned a state {structure(result[1])}, "
            f"but was given {structure(state)}"
        )


def _stack_marks(name: str, marked: list[dict[str, Any]], valid: Array | None) -> Tensor:
    """Stack one marked value over time, zero past the end of each sequence."""
    some = next(marks[name] for marks in marked if name in marks)
    blank = Tensor(np.zeros_like(some.data))
    values = [marks.get(name, blank) for marks in marked]
    if valid is not None:
        values = [
            v
            if inside.all() or v.ndim < 2 or len(v) != len(inside)
            else choose(Tensor(inside[:, None]), v, 0.0)
            for v, inside in zip(values, valid, strict=True)
        ]
    stacked: Tensor = stack(values)
    return stacked
