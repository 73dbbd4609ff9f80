"""A second opinion beside a check: another engine's layer, where one was asked for."""

from __future__ import annotations

from typing import Any

from . import options
from .report import GradientError, Verdict

unknown: dict[str, str] = {}  # what the oracle of this run does not know, and why


def beside(module: Any, *inputs: Any, state: Any = None, lengths: Any = None) -> None:
    """Compare a layer with the oracle of ``options.current``; one it does not know is noted.

    Raises
    ------
    GradientError
        Where the two differ.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> beside(nn.RNN(1, 1), [[[1.0]]])  # no oracle was asked for
    """
    if options.current.oracle is None:
        return
    from .oracles import check_against

    try:
        check_against(options.current.oracle, module, *inputs, state=state, lengths=lengths)
    except GradientError as error:
        if error.verdict is not Verdict.UNRELIABLE:
            raise
        cells = getattr(module, "cells", None)
        cell = next((cell for _, _, cell in cells()), module) if callable(cells) else module
        unknown.setdefault(type(cell).__name__, str(error).splitlines()[0])
