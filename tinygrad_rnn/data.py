"""Text, series and samples cut into batches that can be stopped and continued anywhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .errors import DtypeError, ShapeError, StateError
from .vocabulary import IntArray, Vocabulary, as_array, as_ids, at_least

Array = NDArray[Any]
Seed = int | Sequence[int] | np.random.Generator | None
Batch = TypeVar("Batch")

__all__ = ["Batches", "Vocabulary", "batches", "bptt_batches", "pad", "windows"]


@dataclass
class _Place:
    """Where an iteration stands; `ahead` says that its next batch is still to be asked for."""

    epoch: int
    position: int
    ahead: bool = False


class Batches(Generic[Batch]):
    """Batches of samples, epoch after epoch; made by `batches`, `windows` and `bptt_batches`.

    Each ``for`` loop is one epoch. The order of epoch e depends on the seed and e alone, so that a
    position is a few numbers: `state` gives them, `restore` continues from them. A batch counts as
    consumed once it is handed out: a state saved in the body of the loop continues with the next
    batch. After the last batch there is none left in that epoch, so the first loop after such a
    `restore` is empty; a state saved after the loop continues with a whole epoch.

    Where several iterations run at once, the state is that of the newest.

    Parameters
    ----------
    kind
        The name of the function that made the batches.
    sizes
        What a state must agree on.
    samples
        Number of samples of an epoch.
    size
        Samples per batch; the last batch has what is left.
    take
        Gives the batch of some samples, from their indices.
    seed
        Of the order of the samples; None keeps them in order.
    drop_last
        Whether to leave out a last batch of fewer than `size` samples.

    Examples
    --------
    >>> data = batches(np.arange(6), batch_size=2, shuffle=False)
    >>> for batch in data:
    ...     state = data.state()
    ...     break
    >>> state["epoch"], state["position"]
    (0, 1)
    >>> data.restore(state)
    >>> list(data)
    [array([2, 3]), array([4, 5])]
    >>> len(list(data)) == len(data) == 3
    True
    """

    def __init__(
        self,
        kind: str,
        sizes: Mapping[str, int | str],
        samples: int,
        size: int,
        take: Callable[[NDArray[np.intp]], Batch],
        *,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self._kind = kind
        self._sizes = dict(sizes)
        self._samples = samples
        self._size = size
        self._take = take
        self._seed = seed
        self._len = samples // size if drop_last else -(-samples // size)
        self._place = _Place(0, 0, ahead=True)

    def __len__(self) -> int:
        return self._len

    def __repr__(self) -> str:
        return _call(self._kind, self._sizes)

    def __iter__(self) -> Iterator[Batch]:
        last = self._place
        self._place = _Place(last.epoch, last.position) if last.ahead else _Place(last.epoch + 1, 0)
        return self._run(self._place)

    def _run(self, place: _Place) -> Iterator[Batch]:
        order = np.arange(self._samples)
        if self._seed is not None:
            order = np.random.default_rng((self._seed, place.epoch)).permutation(order)
        for k in range(place.position, len(self)):
            batch = self._take(order[k * self._size : (k + 1) * self._size])
            place.position = k + 1
            yield batch
        place.epoch, place.position, place.ahead = place.epoch + 1, 0, True

    def state(self) -> dict[str, Any]:
        """Return the position as a dictionary that JSON can hold."""
        return {
            "kind": self._kind,
            "sizes": dict(self._sizes),
            "seed": self._seed,
            "epoch": self._place.epoch,
            "position": self._place.position,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the next loop continue where `state` was taken, with the order of that run.

        Raises
        ------
        StateError
            The state is of other batches, or is not a state.
        """
        match state:
            case {"kind": str(kind), "sizes": dict(sizes), "seed": seed}:
                pass
            case _:
                raise StateError(f"not a state of {self!r}: {state!r}")
        if kind != self._kind or sizes != self._sizes:
            raise StateError(f"the state is of {_call(kind, sizes)}, not of {self!r}")
        epoch, position = state.get("epoch"), state.get("position")
        fits = seed is None if self._seed is None else isinstance(seed, int) and seed >= 0
        if not fits:
            raise StateError(f"seed {seed!r} of the state does not fit {self!r}")
        if not isinstance(epoch, int) or epoch < 0:
            raise StateError(f"epoch {epoch!r} of the state: expected 0, 1, ...")
        if not isinstance(position, int) or not 0 <= position <= len(self):
            raise StateError(f"position {position!r} of the state: expected 0..{len(self)}")
        self._seed = seed
        self._place = _Place(epoch, position, ahead=True)


def batches(
    *arrays: Any,
    batch_size: int,
    axis: int | Sequence[int] = 0,
    shuffle: bool = True,
    rng: Seed = None,
    drop_last: bool = False,
) -> Batches[Any]:
    """Cut samples into minibatches, in a new random order every epoch.

    Parameters
    ----------
    *arrays
        Columns of the same number of samples. An array gives arrays; a list or tuple, such as
        sequences of different lengths, gives lists.
    batch_size
        Samples per batch, N; the last batch has what is left.
    axis
        The samples' axis of the arrays, one for all or one for each: 1 for (T, N, D).
    shuffle
        Whether to shuffle.
    rng
        A seed or a generator, which is drawn from once, here; None means fresh entropy.
    drop_last
        Whether to leave out a last batch of fewer than `batch_size` samples.

    Returns
    -------
    Batches
        Of tuples, one entry per column, or of the entries themselves if there is one column.

    Raises
    ------
    ShapeError
        There are no samples, or the columns differ in their number.
    ValueError
        `batch_size` is less than 1, or there are more or fewer axes than columns.

    Examples
    --------
    >>> x = np.arange(10).reshape(5, 2)
    >>> for rows, words in batches(x, list("abcde"), batch_size=3, shuffle=False):
    ...     print(rows.tolist(), words)
    [[0, 1], [2, 3], [4, 5]] ['a', 'b', 'c']
    [[6, 7], [8, 9]] ['d', 'e']
    """
    size = at_least("batch_size", batch_size, 1)
    if not arrays:
        raise TypeError("batches needs at least one array or list of samples")
    axes = [axis] * len(arrays) if isinstance(axis, int | np.integer) else list(axis)
    if len(axes) != len(arrays):
        raise ValueError(f"{len(axes)} axes for {len(arrays)} columns: give one each, or one int")
    columns = [_Column(i, *pair) for i, pair in enumerate(zip(arrays, axes, strict=True))]
    counts = [column.count for column in columns]
    samples = counts[0]
    if len(set(counts)) > 1:
        raise ShapeError(
            f"columns of {', '.join(map(str, counts))} samples along axes "
            f"{', '.join(map(str, axes))}: all must have the same number"
        )
    if samples < (size if drop_last else 1):
        least = f" for a whole batch of {size}" if drop_last else ""
        raise ShapeError(f"{samples} samples, too few{least}: no batch in an epoch")

    def take(index: NDArray[np.intp]) -> Any:
        parts = tuple(column.take(index) for column in columns)
        return parts if len(parts) > 1 else parts[0]

    sizes = {"samples": samples, "batch_size": size, "shuffle": shuffle, "drop_last": drop_last}
    seed = _draw_seed(rng) if shuffle else None
    return Batches("batches", sizes, samples, size, take, seed=seed, drop_last=drop_last)


def windows(
    series: ArrayLike,
    *,
    length: int,
    batch_size: int,
    horizon: int = 1,
    stride: int = 1,
    targets: Literal["next", "sequence"] = "next",
    shuffle: bool = True,
    rng: Seed = None,
) -> Batches[tuple[Array, Array]]:
    """Cut a time series into windows and what follows them, in minibatches.

    The window at s = 0, stride, 2 stride, ... covers the values s to s + length - 1. Its target is
    the value at s + length - 1 + horizon (``"next"``), or, for each of its steps t, the value at
    s + t + horizon (``"sequence"``). Only windows with all their targets are used.

    Parameters
    ----------
    series
        (T,), as if (T, 1), or (T, D), of any dtype, which is kept.
    length
        Steps per window.
    batch_size
        Windows per batch, N; the last batch has what is left.
    horizon
        Steps from the last value seen to the target.
    stride
        Steps from one window to the next.
    targets
        ``"next"`` or ``"sequence"``.
    shuffle
        Whether to shuffle the windows, anew every epoch.
    rng
        A seed or a generator, which is drawn from once, here; None means fresh entropy.

    Returns
    -------
    Batches
        Of pairs: x (length, N, D) and y (N, D), or (length, N, D) for ``"sequence"``.

    Raises
    ------
    ShapeError
        `series` is ragged, has no axis or more than two, or is shorter than one window and its
        target.
    ValueError
        A number is less than 1, or `targets` is another word.

    Examples
    --------
    >>> [(x, y)] = windows([10, 20, 30, 40, 50], length=3, batch_size=2, shuffle=False)
    >>> x[:, 0, 0], y[0]
    (array([10, 20, 30]), array([40]))
    >>> x[:, 1, 0], y[1]
    (array([20, 30, 40]), array([50]))
    """
    size = at_least("batch_size", batch_size, 1)
    length = at_least("length", length, 1)
    horizon = at_least("horizon", horizon, 1)
    stride = at_least("stride", stride, 1)
    if targets not in ("next", "sequence"):
        raise ValueError(f"targets={targets!r}: expected 'next' or 'sequence'")
    values = as_array("series", series)
    if values.ndim not in (1, 2):
        raise ShapeError(f"series has shape {values.shape}: expected (T,) or (T, D)")
    if len(values) < length + horizon:
        raise ShapeError(
            f"series has {len(values)} steps: a window of length={length} and its target at "
            f"horizon={horizon} need {length + horizon}"
        )
    if values.ndim == 1:
        values = values[:, None]
    count = (len(values) - length - horizon) // stride + 1

    def take(index: NDArray[np.intp]) -> tuple[Array, Array]:
        steps = stride * index + np.arange(length)[:, None]
        ahead = steps if targets == "sequence" else steps[-1]
        return values[steps], values[ahead + horizon]

    sizes = {
        "series": len(values),
        "length": length,
        "horizon": horizon,
        "stride": stride,
        "batch_size": size,
        "shuffle": shuffle,
        "targets": targets,
    }
    return Batches("windows", sizes, count, size, take, seed=_draw_seed(rng) if shuffle else None)


def bptt_batches(
    ids: ArrayLike, *, batch_size: int, steps: int
) -> Batches[tuple[IntArray, IntArray]]:
    """Cut one long text into parallel streams, and these into pieces for truncated BPTT.

    With n ids, each of the N streams has S = (n - 1) // N steps: stream j reads ids j S to
    (j + 1) S - 1, and its targets are the same shifted by one. Each batch holds the next steps of
    all streams, so that a state may be carried from batch to batch within an epoch. The last batch
    has the S mod T steps left, if any. The last (n - 1) mod N ids are used neither as input nor
    as target.

    Parameters
    ----------
    ids
        Integers (n,).
    batch_size
        Streams, N.
    steps
        Steps per batch, T.

    Returns
    -------
    Batches
        Of pairs: x and y, int64 (T, N), where y is x one step later.

    Raises
    ------
    ShapeError
        There are fewer than N + 1 ids, or they are not one sequence.
    DtypeError
        The ids are not integers.
    ValueError
        `batch_size` or `steps` is less than 1.

    Examples
    --------
    >>> for x, y in bptt_batches(range(8), batch_size=2, steps=2):
    ...     print(x.tolist(), y.tolist())
    [[0, 3], [1, 4]] [[1, 4], [2, 5]]
    [[2, 5]] [[3, 6]]
    """
    N = at_least("batch_size", batch_size, 1)
    T = at_least("steps", steps, 1)
    array = as_ids(ids)
    S = (len(array) - 1) // N
    if S < 1:
        raise ShapeError(
            f"{len(array)} ids are too few for batch_size={N} streams: expected at least {N + 1}"
        )
    x = array[: N * S].reshape(N, S).T
    y = array[1 : N * S + 1].reshape(N, S).T
    sizes = {"ids": len(array), "batch_size": N, "steps": T}
    return Batches("bptt_batches", sizes, S, T, lambda index: (x[index], y[index]))


def pad(
    sequences: Iterable[ArrayLike], *, value: complex = 0, dtype: DTypeLike | None = None
) -> tuple[Array, IntArray]:
    """Stack sequences of different lengths into one time-major array.

    Parameters
    ----------
    sequences
        N sequences (T_n,) or (T_n, D), and so on, with the same D. An empty one, ``[]``, fits any.
    value
        What follows the end of a sequence.
    dtype
        Of the array; by default the common one of the sequences that are not ``[]``.

    Returns
    -------
    array, lengths
        (T, N) or (T, N, D) with T the greatest length, and the lengths, int64 (N,).

    Raises
    ------
    ShapeError
        There is no sequence or all are empty, one is a number or ragged, or their D differ.
    DtypeError
        The array cannot hold `value`: a fraction, NaN or 300 in one of uint8, 2 in one of booleans.

    Examples
    --------
    >>> array, lengths = pad([[1, 2, 3], [4]])
    >>> array
    array([[1, 4],
           [2, 0],
           [3, 0]])
    >>> lengths
    array([3, 1])
    """
    arrays = [_sequence(i, sequence) for i, sequence in enumerate(sequences)]
    lengths = np.array([len(array) for array in arrays], np.int64)
    if not lengths.any():
        raise ShapeError(f"{len(arrays)} sequences without a step: expected at least one with one")
    typed = {i: array for i, array in enumerate(arrays) if array.shape != (0,)}
    first = next(iter(typed))
    rest = typed[first].shape[1:]
    for i, array in typed.items():
        if array.shape[1:] != rest:
            raise ShapeError(
                f"sequence {i} has shape {array.shape}, but sequence {first} has "
                f"{typed[first].shape}: all axes but the first must agree"
            )
    kind = np.result_type(*(array.dtype for array in typed.values())) if dtype is None else dtype
    out = np.empty((int(lengths.max()), len(arrays), *rest), kind)
    if not _holds(out.dtype, value):
        raise DtypeError(f"value={value} cannot pad {out.dtype}: give another value or dtype")
    out[...] = value
    for i, array in typed.items():
        out[: len(array), i] = array
    return out, lengths


class _Column:
    """One column of samples: an array with a samples' axis, or a list."""

    def __init__(self, number: int, data: Any, axis: int) -> None:
        self.data = data if isinstance(data, list | tuple) else np.asarray(data)
        self.axis = axis
        if isinstance(self.data, list | tuple):
            if axis != 0:
                raise ValueError(f"column {number} is a list: its samples' axis is 0, not {axis}")
            self.count = len(self.data)
        elif not -self.data.ndim <= axis < self.data.ndim:
            raise ShapeError(f"column {number} has shape {self.data.shape}, so no axis {axis}")
        else:
            self.count = self.data.shape[axis]

    def take(self, index: NDArray[np.intp]) -> Any:
        if isinstance(self.data, np.ndarray):
            return self.data.take(index, self.axis)
        return [self.data[i] for i in index]


def _call(kind: str, sizes: Mapping[str, Any]) -> str:
    return f"{kind}({', '.join(f'{name}={size!r}' for name, size in sizes.items())})"


def _draw_seed(rng: Seed) -> int:
    return int(np.random.default_rng(rng).integers(2**63))


def _holds(dtype: np.dtype[Any], value: Any) -> bool:
    """Return whether an array keeps a number as it is, but for rounding."""
    value = value.item() if isinstance(value, np.generic) else value  # compares exactly
    if isinstance(value, complex):
        return dtype.kind not in "biuf"
    if dtype.kind == "b":
        return value in (0, 1)
    if dtype.kind in "iu":
        return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max and value == int(value))
    return True


def _sequence(number: int, sequence: ArrayLike) -> Array:
    array = as_array(f"sequence {number}", sequence)
    if array.ndim == 0:
        raise ShapeError(f"sequence {number} is a single value: expected (T,) or (T, D)")
    return array
