"""The two loops: `fit` and `evaluate`."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import StateError
from ..module import Module, evaluating
from ..optim import Optimizer
from ..scope import no_grad
from ..tensor import Tensor
from .history import History, Step
from .progress import Bar, Interrupt
from .run import Loss, Run, call, has_position

Items: TypeAlias = Callable[[Any], int]


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

    A loss that yields several pairs (loss, state) for a batch, as ``bptt.truncated`` does, makes a
    step of each; the run stops, and writes checkpoints, when a batch is done.

    Ctrl-C, in the main thread, ends the run after the step that it finds running, with a
    checkpoint if there is a path, and with ``history.interrupted``; a second one raises at once.

    Parameters
    ----------
    model : Module
    batches : Batches, list or tuple
        Of an epoch: gone through `epochs` times.
    loss : callable
        ``loss(model, batch, state) -> (loss, state)``: a scalar Tensor, and what is carried:
        a Tensor, an array, a tuple of such, or None.  Or an iterator over such pairs.
    optimizer : Optimizer
        Of parameters of the model.
    epochs : int
        In total: a resumed run ends where the uninterrupted one would have.
    clip : float, optional
        The greatest norm of all gradients together.
    validation : Batches, list or tuple, optional
        Evaluated after each epoch, into ``history.validation``.
    callbacks : iterable of callable
        Called with a `Step` after each; one that returns True ends the run after it. None may loop
        over `batches`, whose position in the data that would move.
    items : callable, optional
        How many items a batch has, for items per second and as its weight in `evaluate`; by
        default the number of elements of the batch's last entry, the targets.
    checkpoint : path, optional
        One file for parameters, optimizer, history, carried state, position in the data, and every
        ``np.random.Generator`` that is an attribute of a module or in a list, tuple or dict that
        is one. Written at intervals and at the end. A failure to write it is a warning, since
        training can go on.
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
        If the carried state changes its structure, or a callback moves the position of `batches`.
        If a checkpoint is of another model, optimizer or data; nothing is changed then.
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
    run = Run(model, batches, loss, optimizer, clip, validation)
    if checkpoint is not None:
        _check_path(checkpoint, run)
        if resume and Path(checkpoint).exists():
            run.load(checkpoint)

    def save() -> None:
        if checkpoint is not None:
            run.save(checkpoint)

    with Interrupt() as interrupt, Bar(progress, run, epochs, items or count_items) as bar:
        stop = False
        while run.epoch < epochs and not stop:
            model.train()
            for batch in run.rest():
                due = False
                for step in run.steps(batch):
                    place = run.batches.state() if has_position(batches) else None
                    answers = [callback(step) for callback in callbacks]  # all, then decide
                    if place is not None and run.batches.state() != place:
                        raise StateError(
                            f"fit: a callback of step {step.step} looped over batches, whose "
                            f"position in the data that moved; make another one for it"
                        )
                    stop |= any(_is_true(answer) for answer in answers)
                    due |= checkpoint_every is not None and step.step % checkpoint_every == 0
                bar.show(step, batch)
                stop |= interrupt.came
                if stop:
                    break
                if due:
                    save()
            else:
                run.end_epoch()
                if validation is not None:
                    value = evaluate(model, validation, loss, items=items)
                    run.history.validation[run.epoch] = value
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
        One that yields under ``no_grad()`` too is an error; ``bptt.truncated`` does not.
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
    total, weight, state = 0.0, 0, None
    with no_grad(), evaluating(model):
        for batch in batches:
            value, state = call(loss, model, batch, state)
            n = weigh(batch)
            total, weight = total + n * float(value.item()), weight + n
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


def _is_true(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) and bool(value)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"fit: {name}={value!r}: expected a whole number, 1 or more")


def _check_batches(name: str, batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise TypeError(f"{name} is an iterator, which one loop uses up: pass list({name})")
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name}: expected something to loop over, got {type(batches).__name__}")


def _check_path(path: str | os.PathLike[str], run: Run) -> None:
    """Raise where a checkpoint could not be written."""
    for batches in (run.batches, run.validation):
        if not (batches is None or has_position(batches) or isinstance(batches, list | tuple)):
            raise TypeError(
                f"fit: a checkpoint needs batches with state() and restore(), a list or a tuple, "
                f"got {type(batches).__name__}"
            )
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        code = errno.EISDIR if target.is_dir() else errno.EINVAL
        reason = "checkpoint: it exists and is not a regular file"
        raise OSError(code, reason, os.fspath(path))
    try:
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        reason = f"checkpoint: files cannot be made here ({error.strerror})"
        raise type(error)(error.errno, reason, str(target.parent)) from error
