"""One training run: where it stands, its next step, and checkpoints that continue it."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from .. import archive
from ..arrays import Array
from ..errors import CheckpointError, NonFiniteError, ShapeError, StateError
from ..module import Module
from ..optim import Optimizer, clip_grad_norm
from ..tensor import Tensor
from .history import History, Step

Loss: TypeAlias = Callable[[Any, Any, Any], Any]
"""``loss(model, batch, state) -> (mean loss of the batch, state for the next one)``

Or an iterator over such pairs, one for each step of the optimizer.
"""
KIND = "training"  # what a checkpoint of `fit` calls itself


@dataclass
class Run:
    """A training run and where it stands: what a checkpoint holds."""

    model: Module
    batches: Any
    loss: Loss
    optimizer: Optimizer
    clip: float | None
    validation: Any
    history: History = field(default_factory=History)
    epoch: int = 0  # how many have ended
    position: int = 0  # batches done in this epoch
    state: Any = None

    def rest(self) -> Iterator[Any]:
        """Iterate over what is left of this epoch."""
        if has_position(self.batches):  # it knows by itself
            return iter(self.batches)
        return islice(self.batches, self.position, None)

    def steps(self, batch: Any) -> Iterator[Step]:
        """Take the steps of a batch: one, or one for each pair that the loss yields."""
        before, result = len(self.history.step), self.loss(self.model, batch, self.state)
        if isinstance(result, Iterator):
            for pair in result:
                step = self.step(pair)
                del pair  # and with it a graph, before the next one is made
                yield step
        else:
            step = self.step(result)
            del result
            yield step
        if len(self.history.step) == before:
            raise ValueError(f"fit: loss yielded no (loss, state) in epoch {self.epoch + 1}")
        self.position += 1

    def step(self, result: Any) -> Step:
        """Take one step on what the loss returned; nothing changes if that is not finite."""
        number, epoch, lr = len(self.history.step) + 1, self.epoch + 1, self.optimizer.lr
        self.model.zero_grad()
        value, state = check(result, self.state)
        cost = float(value.item())
        _check_finite("loss", cost, number, epoch)
        value.backward()
        members = [p for group in self.optimizer.groups for p in group["params"]]
        norm = clip_grad_norm(members, math.inf if self.clip is None else self.clip)
        _check_finite("norm of the gradient", norm, number, epoch)
        self.optimizer.step()
        self.state = _detach(state)
        row = (number, epoch, cost, norm, lr)
        for column, entry in zip(self.history.columns().values(), row, strict=True):
            column.append(entry)
        return Step(*row, self.model, self.optimizer, self.history)

    def end_epoch(self) -> None:
        """Drop the state, and go to the next epoch."""
        if not self.position:
            raise ValueError(f"fit: there is no batch in epoch {self.epoch + 1}")
        self.epoch, self.position, self.state = self.epoch + 1, 0, None

    # --- checkpoints

    def generators(self) -> dict[str, np.random.Generator]:
        """Return every generator that an attribute of a module holds, by name."""
        return {
            name: generator
            for path, module in self.model.named_modules()
            for attribute, value in vars(module).items()
            for name, generator in _generators(f"{path}.{attribute}" if path else attribute, value)
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


def call(loss: Loss, model: Module, batch: Any, state: Any) -> tuple[Tensor, Any]:
    """Return what `loss` makes of a batch, checked."""
    return check(loss(model, batch, state), state)


def check(result: Any, state: Any = None) -> tuple[Tensor, Any]:
    """Return a pair (loss, state); raise where `result` is none, or the state another one."""
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


def _generators(name: str, value: Any) -> Iterator[tuple[str, np.random.Generator]]:
    """Yield the generators that an attribute holds, named as `Module` names its parameters."""
    if isinstance(value, np.random.Generator):
        yield name, value
    elif isinstance(value, list | tuple | dict):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _generators(f"{name}.{key}", item)


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


def has_position(batches: Any) -> bool:
    """Return whether batches can say where they stand, and go there."""
    return hasattr(batches, "state") and hasattr(batches, "restore")


def _position(batches: Any) -> Any:
    """Return where batches stand; a list stands where the run does."""
    return batches.state() if has_position(batches) else {"kind": "list", "batches": len(batches)}


def _restore(batches: Any, place: Any) -> None:
    if has_position(batches):
        batches.restore(place)
    elif place != _position(batches):
        raise StateError(f"the checkpoint is of the data {place}, not of {_position(batches)}")


def _plain(value: Any) -> Any:
    """Return a generator's state as JSON can hold it; NumPy takes lists for its arrays."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _check_finite(what: str, value: float, step: int, epoch: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the {what} is {value} in step {step}, epoch {epoch}; the parameters are as they were "
            f"before this step; run it under tinygrad_rnn.debug() to find the op"
        )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
