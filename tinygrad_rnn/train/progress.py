"""What a person sees of a run, and how a person stops it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .history import Step
from .run import Run


class Interrupt:
    """Makes of the first Ctrl-C a flag; the second does what it did before."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Interrupt:
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


class Bar:
    """A progress bar, or nothing."""

    def __init__(
        self, progress: bool | None, run: Run, epochs: int, items: Callable[[Any], int]
    ) -> None:
        self._epochs, self._items = epochs, items
        self._count, self._start = 0, time.perf_counter()
        self._bar: Any = None
        if sys.stderr.isatty() if progress is None and sys.stderr is not None else progress:
            from tqdm import tqdm

            total, done = None, len(run.history.step)
            if hasattr(run.batches, "__len__"):  # a batch may take several steps
                total = epochs * len(run.batches)
                done = run.epoch * len(run.batches) + run.position
            self._bar = tqdm(total=total, initial=done, unit="step")

    def __enter__(self) -> Bar:
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
        for value in [*step.history.validation.values()][-1:]:
            text += f", validation {value:.3f}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
