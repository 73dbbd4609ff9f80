"""The command line of the benchmark."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import perf_counter

from .table import HEAD, Row, markdown

MEASUREMENTS = {  # name: (module, function, rounds of a full run)
    "lstm": ("lstm", "measure", 21),
    "steps": ("scaling", "measure_steps", 9),
    "memory": ("scaling", "measure_memory", 1),
    "free": ("scaling", "measure_free", 1),
    "import": ("imports", "measure", 21),
    "sampling": ("sampling", "measure", 41),
    "adam": ("optimizer", "measure", 61),
    "checks": ("checks", "measure", 21),
    "layers": ("layers", "measure", 41),
    "checkpoint": ("layers", "measure_checkpoint", 7),
    "beam": ("beam", "measure", 21),
    "dates": ("dates", "measure", 21),
    "compiled": ("compiled", "measure", 15),
}
NOTE = "Ratios to peers are medians of the rounds' ratios; the times beside them are medians."
SMOKE = "SMOKE RUN: tiny sizes and few rounds; these figures are not for quoting."


def main(argv: list[str] | None = None, unset: Mapping[str, str] | None = None) -> int:
    """Measure, print one table, return 0 whether or not the wanted figures are met.

    `unset` is what was removed from the environment.
    """
    options = parse(argv)
    if options.pin is not None:
        os.sched_setaffinity(0, {options.pin})
    from .compiled import environment  # loads NumPy, after the pin
    from .machine import describe

    about = describe() | environment(unset)
    if options.smoke:
        print(SMOKE)
    start = perf_counter()
    rows: list[Row] = []
    for name in options.only or MEASUREMENTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += rows_of(name, options.smoke, options.rounds)
    print("\n" + markdown(("machine", ""), about.items()))
    print("\n" + markdown(HEAD, (r.cells() for r in rows)))
    print(f"\n{NOTE} Measured in {perf_counter() - start:.0f} s.")
    if options.smoke:
        print(SMOKE)
    if options.json is not None:
        report = {"smoke": options.smoke, "machine": about, "rows": [asdict(r) for r in rows]}
        options.json.write_text(json.dumps(report, indent=1, default=float) + "\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, every code path")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="may be repeated")
    parser.add_argument("--rounds", type=int, help="rounds of each rotated measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--pin", type=int, metavar="CPU", help="run on this core alone")
    options = parser.parse_args(argv)
    if options.pin is not None and not hasattr(os, "sched_setaffinity"):
        parser.error("--pin: this system cannot bind a process to a core")
    return options


def rows_of(name: str, smoke: bool, rounds: int | None) -> list[Row]:
    """Run one measurement."""
    module, function, usual = MEASUREMENTS[name]
    measure = getattr(import_module(f".{module}", __package__), function)
    return list(measure(smoke=smoke, rounds=rounds or (3 if smoke else usual)))
