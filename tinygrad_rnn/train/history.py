"""What a training run went through."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from ..files import replacing
from ..optim import Optimizer


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
        content = path.read_bytes()
        try:
            text = content.decode()
            if ending == ".json":
                return cls._of(json.loads(text))
            head, *rows = list(csv.reader(io.StringIO(text)))
            if head != [*_COLUMNS, "validation"]:
                raise ValueError(f"the columns are {head}")
            validation = {int(row[1]): float(row[5]) for row in rows if row[5]}
            columns = [[row[k] for row in rows] for k in range(5)]
            return cls._of(dict(zip(_COLUMNS, columns, strict=True)) | {"validation": validation})
        except _NOT_A_HISTORY as error:
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
_NOT_A_HISTORY = (  # what reading a foreign file may raise
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    csv.Error,
)


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


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        raise ValueError(f"a history is saved as .csv or .json, not as {path.name!r}")
    return ending
