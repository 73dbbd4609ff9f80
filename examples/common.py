"""What the examples share: their settings, training that can be stopped, and the last line.

An example has ``SETTINGS``, a function ``run(session)`` that returns what its RESULT line says, and

    def main(argv=None):
        return common.main(__file__, __doc__, SETTINGS, run, argv)

It imports this module before NumPy: matrix products then run on one thread unless
OPENBLAS_NUM_THREADS says otherwise.  These matrices are small, and threads would wait for each
other where other programs keep the cores busy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tinygrad_rnn import Module, optim, train
from tinygrad_rnn.errors import CheckpointError, StateError

Settings = Mapping[str, tuple[Any, str]]
"""By name: the default, whose type the option has (False: a switch), and what it is."""


_FREE = ("out", "resume", "quiet", "seeds", "compile")  # what a run may change when it goes on


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


class Stopped(Exception):  # noqa: N818  it is no error
    """Ctrl-C ended a training run; its checkpoint and its history are written."""


class Session:
    """One run of an example: its settings as attributes, its clock, and where it writes."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.out: Path = args.out
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"--out {self.out}: {error.strerror}") from error
        self.begin = time.perf_counter()

    def __getattr__(self, setting: str) -> Any:
        return getattr(self.__dict__["args"], setting)

    def say(self, *words: Any) -> None:
        """Print, unless --quiet."""
        if not self.args.quiet:
            print(*words, flush=True)

    def seconds(self) -> float:
        """Return the time since the start."""
        return time.perf_counter() - self.begin

    def path(self, label: str, ending: str) -> Path:
        """Return the file in --out for this example and `label`: ``out/adding-lstm-0.csv``."""
        return self.out / f"{'-'.join([self.name, *[label] * bool(label)])}{ending}"

    def check_settings(self, checkpoint: Path) -> None:
        """Refuse to go on from a checkpoint of other settings; note those of a new one."""
        ours = {k: v for k, v in vars(self.args).items() if k not in _FREE}
        note = checkpoint.with_suffix(".json")
        if self.args.resume and checkpoint.exists() and note.exists():
            before = json.loads(note.read_text("utf-8"))
            other = {k: before.get(k) for k, v in ours.items() if before.get(k) != v}
            if other:
                said = ", ".join([f"{_option(k)} {v}" for k, v in other.items()])
                raise SystemExit(
                    f"cannot resume: {checkpoint} was made with {said}: say so again, or pass "
                    f"another --out"
                )
        note.write_text(json.dumps(ours), "utf-8")

    def fit(
        self,
        model: Module,
        batches: Any,
        loss: train.run.Loss,
        optimizer: optim.Optimizer,
        *,
        label: str = "",
        **settings: Any,
    ) -> train.History:
        """Train as ``train.fit`` does, with a checkpoint, a history on disk, and a clean Ctrl-C.

        `label` tells this training run from the others of the example.
        """
        checkpoint, table = self.path(label, ".npz"), self.path(label, ".csv")
        self.check_settings(checkpoint)
        try:
            history = train.fit(
                model,
                batches,
                loss,
                optimizer,
                checkpoint=checkpoint,
                resume=self.args.resume,
                progress=False if self.args.quiet else None,
                **settings,
            )
        except (CheckpointError, StateError) as error:
            raise SystemExit(f"cannot resume: {error}") from error
        history.save(table)
        if history.interrupted:
            self.say(f"written: {checkpoint}, {table}")
            raise Stopped(f"step {len(history.step)}" + (f" of {label}" if label else ""))
        return history


def read(
    doc: str, settings: Settings, argv: Sequence[str] | None, check: Any = None
) -> argparse.Namespace:
    """Return the settings; ``check(args)`` returns what is wrong with them, or None."""
    parser = argparse.ArgumentParser(
        description=doc.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    common: Settings = {
        "seed": (0, "of everything random"),
        "out": (Path("out"), "folder for checkpoints and histories"),
        "resume": (False, "continue from the checkpoints if there are any"),
        "quiet": (False, "print only the result"),
    }
    for name, (default, text) in {**settings, **common}.items():
        if isinstance(default, bool):
            parser.add_argument(_option(name), action="store_true", default=default, help=text)
        else:
            parser.add_argument(_option(name), type=type(default), default=default, help=text)
    args = parser.parse_args(argv)
    for name, (default, _) in settings.items():
        value = getattr(args, name)
        if type(default) is int and value < 1:
            parser.error(f"{_option(name)} {value}: expected 1 or more")
        if type(default) is float and not 0 < value < math.inf:
            parser.error(f"{_option(name)} {value}: expected a number above 0")
    if args.seed < 0:
        parser.error(f"--seed {args.seed}: expected 0 or more")
    wrong = check(args) if check is not None else None
    if wrong:
        parser.error(wrong)
    return args


def main(
    file: str,
    doc: str,
    settings: Settings,
    run: Callable[[Session], Mapping[str, float]],
    argv: Sequence[str] | None = None,
    check: Callable[[argparse.Namespace], str | None] | None = None,
) -> int:
    """Run an example; print ``RESULT key=value ... seconds=``; return the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = read(doc, settings, words, check)
    session = Session(Path(file).stem, args)
    again = shlex.join(
        ["python", f"examples/{session.name}.py", *words] + ["--resume"] * (not args.resume)
    )
    try:
        result = run(session)
    except Stopped as stop:
        print(f"stopped after {stop}; to go on: {again}")
        return 130
    except KeyboardInterrupt:
        print(f"stopped outside training; to go on from the last checkpoint: {again}")
        return 130
    values = " ".join([f"{name}={value:.4g}" for name, value in result.items()])
    print(f"RESULT {values} seconds={session.seconds():.2f}")
    return 0
