"""Training loops: `fit` and `evaluate`, a `History`, checkpoints that continue bit by bit.

What a model is asked for is one function, ``loss(model, batch, state) -> (loss, state)``: the mean
loss of a batch, a scalar Tensor, and the state to carry to the next batch, or None:

>>> import numpy as np
>>> from tinygrad_rnn import data, nn, optim
>>> from tinygrad_rnn.functional import mse_loss
>>> def loss(model, batch, state):
...     x, y = batch
...     return mse_loss(model(x), y), None
>>> x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
>>> batches = data.batches(x, x @ np.float32([[1], [2], [3]]), batch_size=8, rng=0)
>>> model = nn.Linear(3, 1, rng=0)
>>> history = fit(model, batches, loss, optim.Adam(model.parameters(), lr=0.1), epochs=20)
>>> len(history.loss), round(evaluate(model, batches, loss), 2)
(160, 0.0)
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import archive
from .errors import CheckpointError, NonFiniteError, ShapeError, StateError
from .files import replacing
from .module import Module
from .op import Array
from .optim import Optimizer, clip_grad_norm
from .scope import no_grad
from .tensor import Tensor

__all__ = ["History", "Step", "evaluate", "fit"]

Loss: TypeAlias = Callable[[Any, Any, Any], tuple[Tensor, Any]]
"""``loss(model, batch, state) -> (mean loss of the batch, state for the next one)``"""
Items: TypeAlias = Callable[[Any], int]
KIND = "training"  # what a checkpoint of `fit` calls itself


# --- what is remembered ------------------------------------------------------------------------


@dataclass(repr=False)
class History:
    """What a training run went through: one entry per step, and one validation loss per epoch.

    Attributes
    ----------
    step, epoch : list of int
        From 1.
    loss, norm, lr : list of float
        The loss of the batch, the norm of the gradient before clipping, the learning rate.
    validation : dict of int to float
        The validation loss by the number of the epoch it was measured after.
    interrupted : bool
        Whether Ctrl-C ended the run.

    Examples
    --------
    >>> import tempfile
    >>> history = History([1, 2], [1, 1], [0.5, 0.25], [2.0, 1.0], [0.1, 0.1], {1: 0.3})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     history.save(folder + "/run.csv")
    ...     print(Path(folder + "/run.csv").read_text(), History.load(folder + "/run.csv"))
    step,epoch,loss,norm,lr,validation
    1,1,0.5,2.0,0.1,
    2,1,0.25,1.0,0.1,0.3
     History(2 steps, 1 epochs, loss 0.2500, validation 0.3000)
    """

    step: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    interrupted: bool = field(default=False, compare=False)

    def __repr__(self) -> str:
        parts = [f"{len(self.step)} steps", f"{self.epoch[-1] if self.epoch else 0} epochs"]
        parts += [f"loss {self.loss[-1]:.4f}"] if self.loss else []
        parts += [f"validation {list(self.validation.values())[-1]:.4f}"] if self.validation else []
        return f"History({', '.join(parts)}{', interrupted' if self.interrupted else ''})"

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that have one entry per step."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a table to a ``.csv`` file or columns to a ``.json`` file, whole or not at all.

        In the table the validation loss stands in the row of the last step of its epoch.

        Raises
        ------
        ValueError
            If the ending is another one.
        OSError
            If the file cannot be written.
        """
        text = io.StringIO()
        if _ending(Path(path)) == ".csv":
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow([*_COLUMNS, "validation"])
            last = dict(zip(self.epoch, self.step, strict=True))
            for row in zip(*self.columns().values(), strict=True):
                step, epoch = row[:2]
                rows.writerow([*row, self.validation.get(epoch, "") if last[epoch] == step else ""])
        else:
            text.write(json.dumps({**self.columns(), "validation": self.validation}) + "\n")
        with replacing(path) as stream:
            stream.write(text.getvalue().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> History:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If the ending is neither ``.csv`` nor ``.json``.
        CheckpointError
            If the file does not hold a history.
        OSError
            If the file cannot be read.
        """
        path = Path(path)
        ending = _ending(path)
        text = path.read_text("utf-8")
        try:
            if ending == ".json":
                return cls._of(json.loads(text))
            head, *rows = list(csv.reader(io.StringIO(text)))
            if head != [*_COLUMNS, "validation"]:
                raise ValueError(f"the columns are {head}")
            validation = {int(row[1]): float(row[5]) for row in rows if row[5]}
            columns = [[row[k] for row in rows] for k in range(5)]
            return cls._of(dict(zip(_COLUMNS, columns, strict=True)) | {"validation": validation})
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise CheckpointError(f"{path}: not a history ({error})") from error

    @classmethod
    def _of(cls, table: Mapping[str, Any]) -> History:
        """Return the history with these columns, of numbers or of their texts."""
        history = cls()
        for name in _COLUMNS:
            kind = int if name in ("step", "epoch") else float
            getattr(history, name).extend([kind(value) for value in table[name]])
        history.validation = {int(k): float(v) for k, v in table["validation"].items()}
        if len({len(column) for column in history.columns().values()}) != 1:
            raise ValueError("the columns differ in length")
        return history


_COLUMNS = tuple(f.name for f in fields(History))[:5]


class Step(NamedTuple):
    """What callbacks are told after each step.

    Attributes
    ----------
    step, epoch : int
        From 1; the step counts through all epochs.
    loss, norm, lr : float
        As in the `History`.
    model : Module
    optimizer : Optimizer
    history : History
        Up to and with this step.
    """

    step: int
    epoch: int
    loss: float
    norm: float
    lr: float
    model: Any
    optimizer: Optimizer
    history: History


# --- the two loops -----------------------------------------------------------------------------


def fit(
    model: Module,
    batches: Iterable[Any],
    loss: Loss,
    optimizer: Optimizer,
    *,
    epochs: int,
    clip: float | None = None,
    validation: Iterable[Any] | None = None,
    callbacks: Iterable[Callable[[Step], Any]] = (),
    items: Items | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> History:
    """Train a model in place, and return what happened.

    Each step is ``loss(model, batch, state)``, ``backward()``, clipping, ``optimizer.step()``. The
    state is None at the start of an epoch; what `loss` returns is carried, detached, to the next
    batch. The model is left in training mode.

    Ctrl-C, in the main thread, ends the run after the step that it finds running, with a
    checkpoint if there is a path, and with ``history.interrupted``; a second one raises at once.

    Parameters
    ----------
    model : Module
    batches : Batches, list or tuple
        Of an epoch: gone through `epochs` times.
    loss : callable
        ``loss(model, batch, state) -> (loss, state)``: a scalar Tensor, and what is carried:
        a Tensor, an array, a tuple of such, or None.
    optimizer : Optimizer
        Of parameters of the model.
    epochs : int
        In total: a resumed run ends where the uninterrupted one would have.
    clip : float, optional
        The greatest norm of all gradients together.
    validation : Batches, list or tuple, optional
        Evaluated after each epoch, into ``history.validation``.
    callbacks : iterable of callable
        Called with a `Step` after each; one that returns True ends the run after it.
    items : callable, optional
        How many items a batch has, for items per second and as its weight in `evaluate`; by
        default the number of elements of the batch's last entry, the targets.
    checkpoint : path, optional
        One file for parameters, optimizer, history, carried state, position in the data, and every
        ``np.random.Generator`` that is an attribute of a module. Written at intervals and at the
        end. A failure to write it is a warning, since training can go on.
    checkpoint_every : int, optional
        Steps between two checkpoints; by default one at the end of each epoch.
    resume : bool
        Whether to continue from the checkpoint if the file exists. The arguments are those of the
        first run; the result is, bit by bit, that of a run that was never stopped.
        Otherwise the run starts afresh and its first checkpoint replaces the file.
    progress : bool, optional
        Whether to show a bar on stderr; by default only on a terminal.

    Returns
    -------
    History
        Of the whole run, the part before a resumption included.

    Raises
    ------
    NonFiniteError
        If a loss or a gradient is NaN or infinite: before the optimizer is applied.
    ValueError, TypeError
        If an argument does not fit, there are no batches, or `loss` returns something else.
    StateError
        If the carried state changes its structure, or a checkpoint is of another model, optimizer
        or data; nothing is changed then.
    CheckpointError
        If the file is damaged or foreign; nothing is changed then.
    OSError
        If the checkpoint cannot be written there: before the first step.

    Warns
    -----
    UserWarning
        If a checkpoint cannot be written later on.

    Examples
    --------
    A language model, whose state runs on from batch to batch:

    >>> from tinygrad_rnn import data, nn, optim
    >>> from tinygrad_rnn.functional import cross_entropy, one_hot
    >>> net = nn.Readout(nn.GRU(2, 4, rng=0), 2, rng=0)
    >>> def loss(model, batch, state):
    ...     x, y = batch
    ...     logits, state = model(one_hot(x, 2), state)
    ...     return cross_entropy(logits, y, reduction="mean"), state
    >>> abba = data.bptt_batches([0, 1, 1, 0] * 32, batch_size=2, steps=8)
    >>> adam = optim.Adam(net.parameters(), lr=0.03)
    >>> history = fit(net, abba, loss, adam, epochs=20, clip=5.0, validation=list(abba))
    >>> history.validation[1] > 0.5, history.validation[20] < 0.05
    (True, True)
    """
    _check_number("epochs", epochs)
    if checkpoint_every is not None:
        _check_number("checkpoint_every", checkpoint_every)
    if checkpoint is None and (resume or checkpoint_every is not None):
        raise ValueError("fit: resume and checkpoint_every need a path: checkpoint='run.npz'")
    _check_batches("batches", batches)
    if validation is not None:
        _check_batches("validation", validation)
        if validation is batches:
            raise ValueError(
                "fit: validation is the same object as batches, whose position in the data it "
                "would move; make another one"
            )
    known = {id(p) for p in model.parameters()}
    for p in (p for group in optimizer.groups for p in group["params"]):
        if id(p) not in known:
            raise ValueError(
                f"fit: the optimizer has {p.name or 'a parameter'} {p.shape} that is none of the "
                f"model's: make the optimizer from model.parameters() of this model"
            )
    callbacks = tuple(callbacks)
    run = _Run(model, batches, loss, optimizer, clip, validation)
    if checkpoint is not None:
        _check_path(checkpoint, run)
        if resume and Path(checkpoint).exists():
            run.load(checkpoint)

    def save() -> None:
        if checkpoint is not None:
            run.save(checkpoint)

    with _Interrupt() as interrupt, _Bar(progress, run, epochs, items or count_items) as bar:
        stop = False
        while run.epoch < epochs and not stop:
            model.train()
            for batch in run.rest():
                step = run.step(batch)
                bar.show(step, batch)
                answers = [callback(step) for callback in callbacks]  # all of them, then decide
                stop = interrupt.came or any(_is_true(answer) for answer in answers)
                if stop:
                    break
                if checkpoint_every is not None and step.step % checkpoint_every == 0:
                    save()
            else:
                run.end_epoch(items)
                if checkpoint_every is None and run.epoch < epochs:
                    save()
                stop = interrupt.came
        save()
        run.history.interrupted = interrupt.came
    return run.history


def evaluate(
    model: Module, batches: Iterable[Any], loss: Loss, *, items: Items | None = None
) -> float:
    """Return the mean loss over batches, each weighted by its number of items.

    Nothing is recorded, dropout is off, and the state is carried from batch to batch as in `fit`.
    The mode of the model is as before when it returns.

    Parameters
    ----------
    loss : callable
        As of `fit`. It should be a mean over the items of the batch, for the result to be one.
    items : callable, optional
        How many items a batch has; by default the number of elements of its last entry, the
        targets. ``lambda batch: 1`` gives the plain mean over the batches.

    Raises
    ------
    ValueError
        If there are no batches, or no items in them.

    Examples
    --------
    >>> from tinygrad_rnn import Tensor
    >>> def loss(model, batch, state):
    ...     return Tensor(batch).mean(), None
    >>> evaluate(Module(), [[1.0, 2.0, 3.0], [6.0]], loss)
    3.0
    >>> evaluate(Module(), [[1.0, 2.0, 3.0], [6.0]], loss, items=lambda batch: 1)
    4.0
    """
    _check_batches("batches", batches)
    weigh = items or count_items
    modes = [(module, module.training) for _, module in model.named_modules()]
    total, weight, state = 0.0, 0, None
    model.eval()
    try:
        with no_grad():
            for batch in batches:
                value, state = _call(loss, model, batch, state)
                n = weigh(batch)
                total, weight = total + n * float(value.item()), weight + n
    finally:
        for module, training in modes:
            object.__setattr__(module, "training", training)
    if not weight:
        raise ValueError("evaluate: there is no batch, or no item in the batches")
    return total / weight


def count_items(batch: Any) -> int:
    """Return the number of elements of the last entry of a batch, or of the batch itself.

    >>> count_items((np.zeros((5, 2)), np.zeros(5))), count_items((["a", "b"], [[1, 2], [3]]))
    (5, 2)
    """
    last = batch[-1] if isinstance(batch, tuple) and batch else batch
    if isinstance(last, np.ndarray | Tensor):
        return int(last.size)
    return len(last) if hasattr(last, "__len__") else 1


# --- one run -----------------------------------------------------------------------------------


@dataclass
class _Run:
    """A training run and where it stands: what a checkpoint holds."""

    model: Module
    batches: Any
    loss: Loss
    optimizer: Optimizer
    clip: float | None
    validation: Any
    history: History = field(default_factory=History)
    epoch: int = 0  # how many have ended
    position: int = 0  # steps taken in this epoch
    state: Any = None

    def rest(self) -> Iterator[Any]:
        """Iterate over what is left of this epoch."""
        if _has_position(self.batches):  # it knows by itself
            return iter(self.batches)
        return islice(self.batches, self.position, None)

    def step(self, batch: Any) -> Step:
        """Take one step; nothing changes if a loss or gradient is not finite."""
        number, epoch, lr = len(self.history.step) + 1, self.epoch + 1, self.optimizer.lr
        self.model.zero_grad()
        value, state = _call(self.loss, self.model, batch, self.state)
        cost = float(value.item())
        _check_finite("loss", cost, number, epoch)
        value.backward()
        members = [p for group in self.optimizer.groups for p in group["params"]]
        norm = clip_grad_norm(members, math.inf if self.clip is None else self.clip)
        _check_finite("norm of the gradient", norm, number, epoch)
        self.optimizer.step()
        self.state = _detach(state)
        self.position += 1
        row = (number, epoch, cost, norm, lr)
        for column, entry in zip(self.history.columns().values(), row, strict=True):
            column.append(entry)
        return Step(*row, self.model, self.optimizer, self.history)

    def end_epoch(self, items: Items | None) -> None:
        """Validate, drop the state, and go to the next epoch."""
        if not self.position:
            raise ValueError(f"fit: there is no batch in epoch {self.epoch + 1}")
        self.epoch, self.position, self.state = self.epoch + 1, 0, None
        if self.validation is not None:
            value = evaluate(self.model, self.validation, self.loss, items=items)
            self.history.validation[self.epoch] = value

    # --- checkpoints

    def generators(self) -> dict[str, np.random.Generator]:
        """Return every generator that is an attribute of a module, by name."""
        return {
            f"{path}.{name}" if path else name: value
            for path, module in self.model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, np.random.Generator)
        }

    def pack(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays and the meta data of a checkpoint."""
        arrays = {f"model/{name}": a for name, a in self.model.state_dict().items()}
        arrays |= {f"optimizer/{name}": a for name, a in self.optimizer.state_dict().items()}
        for name, column in self.history.columns().items():
            kind = np.int64 if name in ("step", "epoch") else np.float64
            arrays[f"history/{name}"] = np.array(column, kind)
        arrays |= {f"state/{k}": a for k, a in enumerate(_pack_state(self.state))}
        return arrays, {
            "kind": KIND,
            "epoch": self.epoch,
            "position": self.position,
            "state": _structure(self.state),
            "batches": _position(self.batches),
            "validation": None if self.validation is None else _position(self.validation),
            "validation losses": self.history.validation,
            "generators": {k: _plain(g.bit_generator.state) for k, g in self.generators().items()},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint; warn where that fails."""
        try:
            archive.write(path, *self.pack())
        except OSError as error:
            step = len(self.history.step)
            text = f"fit: no checkpoint was written at step {step}, training goes on: {error}"
            warnings.warn(text, UserWarning, stacklevel=4)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint; nothing changes if anything in it does not fit."""
        arrays, meta = archive.read(path)
        if meta.get("kind") != KIND:
            raise CheckpointError(
                f"{os.fspath(path)}: holds {meta.get('kind')!r}, not a checkpoint of fit"
            )
        own = self.generators()
        expected = {k: g.bit_generator.state["bit_generator"] for k, g in own.items()}
        try:
            parts: dict[str, dict[str, Array]] = {part: {} for part in _PARTS}
            for key, a in arrays.items():
                part, _, name = key.partition("/")
                parts[part][name] = a
            epoch, position = (_count(meta[name]) for name in ("epoch", "position"))
            carried = iter(parts["state"].values())
            state = _unpack_state(meta["state"], carried)
            if [*carried]:
                raise ValueError("more arrays than the state has")
            history = History._of({**parts["history"], "validation": meta["validation losses"]})
            states, places = meta["generators"], (meta["batches"], meta["validation"])
            kinds = {name: entry["bit_generator"] for name, entry in states.items()}
            if kinds == expected:
                for name, generator in own.items():  # a trial on another one
                    type(generator.bit_generator)(0).state = states[name]
        except Exception as error:  # made by hand, or by another version
            raise CheckpointError(f"{os.fspath(path)}: cannot be read ({error!r})") from error
        if kinds != expected:
            raise StateError(f"the checkpoint has the generators {kinds}, the model {expected}")
        with ExitStack() as undo:
            for p in self.model.parameters():
                undo.callback(setattr, p, "data", p.data)
            self.model.load_state_dict(parts["model"])
            undo.callback(self.optimizer.load_state_dict, self.optimizer.state_dict())
            self.optimizer.load_state_dict(parts["optimizer"])
            if self.validation is not None and places[1] is not None:
                undo.callback(_restore, self.validation, _position(self.validation))
                _restore(self.validation, places[1])
            _restore(self.batches, places[0])
            undo.pop_all()
        for name, generator in own.items():
            generator.bit_generator.state = states[name]
        self.epoch, self.position, self.state, self.history = epoch, position, state, history


_PARTS = ("model", "optimizer", "history", "state")


class _Interrupt:
    """Makes of the first Ctrl-C a flag; the second does what it did before."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> _Interrupt:
        self._before: Any = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread()
        self._active = here and callable(self._before)  # not where it is ignored
        if self._active:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        if self.came:
            self._before(number, frame)
        self.came = True


class _Bar:
    """A progress bar, or nothing."""

    def __init__(self, progress: bool | None, run: _Run, epochs: int, items: Items) -> None:
        self._epochs, self._items = epochs, items
        self._count, self._start = 0, time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty() if progress is None and sys.stderr is not None else progress:
            from tqdm import tqdm

            total = epochs * len(run.batches) if hasattr(run.batches, "__len__") else None
            self._bar = tqdm(total=total, initial=len(run.history.step), unit="step")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, step: Step, batch: Any) -> None:
        """Note a step."""
        if self._bar is None:
            return
        self._count += self._items(batch)
        rate = self._bar.format_sizeof(self._count / (time.perf_counter() - self._start))
        self._bar.set_description(f"epoch {step.epoch}/{self._epochs}", refresh=False)
        text = f"loss {step.loss:.3f}, norm {step.norm:.2f}, {rate} items/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()


# --- what is carried, and where the data stand --------------------------------------------------


def _call(loss: Loss, model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return what `loss` makes of a batch, checked."""
    result = loss(model, batch, state)
    if type(result) is not tuple or len(result) != 2:
        raise TypeError(
            f"loss(model, batch, state) must return (loss, state), got {type(result).__name__}; "
            f"where nothing is carried: return value, None"
        )
    value, new = result
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a Tensor first, got {type(value).__name__}")
    if value.size != 1:
        raise ShapeError(
            f"loss returned a Tensor of shape {value.shape}, not a scalar: take its mean()"
        )
    before, after = _structure(state), _structure(new)
    if state is not None is not new and before != after:
        raise StateError(f"loss was given the state {before} and returned {after}")
    return value, new


def _structure(state: Any) -> Any:
    """Return what a state is made of, as JSON has it."""
    if type(state) is tuple:
        return [_structure(part) for part in state]
    if isinstance(state, Tensor | np.ndarray):
        return "Tensor" if isinstance(state, Tensor) else "array"
    if state is not None:
        raise StateError(
            f"a carried state is a Tensor, an array, None or a tuple of these, "
            f"got {type(state).__name__}"
        )
    return None


def _pack_state(state: Any) -> list[Array]:
    """Return the arrays of a state."""
    if type(state) is tuple:
        return [a for part in state for a in _pack_state(part)]
    return [] if state is None else [np.asarray(state)]


def _unpack_state(structure: Any, arrays: Iterator[Array]) -> Any:
    if isinstance(structure, list):
        return tuple([_unpack_state(part, arrays) for part in structure])
    if structure is None:
        return None
    a = next(arrays)
    return {"Tensor": Tensor(a), "array": a}[structure]


def _detach(state: Any) -> Any:
    """Cut a state from its graph; layouts that a file does not keep are made plain."""
    if type(state) is tuple:
        return tuple([_detach(part) for part in state])
    if isinstance(state, Tensor):
        state = state.detach()
        if not state.data.flags.forc:
            state.data = state.data.copy()
    return state


def _has_position(batches: Any) -> bool:
    return hasattr(batches, "state") and hasattr(batches, "restore")


def _position(batches: Any) -> Any:
    """Return where batches stand; a list stands where the run does."""
    return batches.state() if _has_position(batches) else {"kind": "list", "batches": len(batches)}


def _restore(batches: Any, place: Any) -> None:
    if _has_position(batches):
        batches.restore(place)
    elif place != _position(batches):
        raise StateError(f"the checkpoint is of the data {place}, not of {_position(batches)}")


def _plain(value: Any) -> Any:
    """Return a generator's state as JSON can hold it; NumPy takes lists for its arrays."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


# --- checks and files --------------------------------------------------------------------------


def _is_true(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) and bool(value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"fit: {name}={value!r}: expected a whole number, 1 or more")


def _check_finite(what: str, value: float, step: int, epoch: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the {what} is {value} in step {step}, epoch {epoch}; the parameters are as they were "
            f"before this step; run it under tinygrad_rnn.debug() to find the op"
        )


def _check_batches(name: str, batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise TypeError(f"{name} is an iterator, which one loop uses up: pass list({name})")
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name}: expected something to loop over, got {type(batches).__name__}")


def _check_path(path: str | os.PathLike[str], run: _Run) -> None:
    """Raise where a checkpoint could not be written."""
    for batches in (run.batches, run.validation):
        if not (batches is None or _has_position(batches) or isinstance(batches, list | tuple)):
            raise TypeError(
                f"fit: a checkpoint needs batches with state() and restore(), a list or a tuple, "
                f"got {type(batches).__name__}"
            )
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "checkpoint: it is a directory", os.fspath(path))
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        reason = f"checkpoint: files cannot be made here ({error.strerror})"
        raise type(error)(error.errno, reason, str(target.parent)) from error


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        raise ValueError(f"a history is saved as .csv or .json, not as {path.name!r}")
    return ending
