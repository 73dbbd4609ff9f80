"""Print, and write to README.md beside this file, which planted defect is caught by whom.

python -m tests.defects [--count 200] [--only NAME]
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from tinygrad_rnn.testing import strategies
from tinygrad_rnn.testing.nodes import check_of
from tinygrad_rnn.testing.profiles import EXAMPLES
from tinygrad_rnn.testing.report import GradientError

from . import battery, engine, naming
from .layers import CELLS
from .lstm import HandLSTM, OnlyLast, arrays_of, truncation
from .peers import PEERS, accepts
from .table import DEFECTS

HERE = Path(__file__).parent
PEER_COUNT = 10  # drawn configurations beside the corners; slow rules take minutes for more

_sound = {}


def rejected_by(defect, count):
    """Return the rules of others that reject the defect where they accept the undamaged."""
    found = set()
    sound = []
    for key, subject, arrays in battery.subjects(defect, count):
        for peer in PEERS:
            if (key, peer) not in _sound:
                _sound[key, peer] = accepts(peer, subject, arrays)
        sound.append(key)
    with defect.plant():
        for key, subject, arrays in battery.subjects(defect, count):
            for peer in PEERS:
                if peer not in found and _sound[key, peer] and not accepts(peer, subject, arrays):
                    found.add(peer)
            if len(found) == len(PEERS):
                break
    return found


def shrunk(defect, caught, count):
    """Return the smallest configuration that the check which caught the defect still rejects."""
    subject = HandLSTM()

    def fails(cfg):
        try:
            with np.errstate(all="ignore"):
                if defect.family == "lstm":
                    battery.lstm_check(caught.check, subject, cfg)
                else:
                    check_of(caught.check, {})(cfg)
        except GradientError:
            return True
        except Exception:  # a configuration for which the faulty code does not run at all
            return False
        return False

    cells = CELLS if defect.family == "layer" else CELLS[1:2]
    first = [c for c in strategies.corners(cells) if defect.family == "layer" or not c.lengths]
    with defect.plant():
        cfg = next((c for c in first if fails(c)), caught.cfg)
        while small := next((c for c in cfg.smaller() if fails(c)), None):
            cfg = small
    return cfg


def truncations(T, subject, scale):
    """Return how many of T - 1 cuts each rule catches: the state is detached before step k."""
    cfg = next(c for c in strategies.corners(CELLS[1:2]) if c.T == T)
    x, h, c, *weights = arrays_of(cfg)
    arrays = [x, h, c, *[scale * w for w in weights]]
    sound = [peer for peer in PEERS if accepts(peer, subject, arrays)]
    found = dict.fromkeys(["kit", *PEERS], 0)
    for k in range(1, T):
        with truncation(k)():
            try:
                battery.check_grad(subject, *arrays)
            except GradientError:
                found["kit"] += 1
            for peer in sound:
                found[peer] += not accepts(peer, subject, arrays)
    return found


def row(defect, count, peer_count):
    start = time.perf_counter()
    caught = battery.catches(defect, count)
    small = None
    if caught and defect.family != "engine":
        small = shrunk(defect, caught, count)
    others = rejected_by(defect, peer_count)
    seconds, check = time.perf_counter() - start, caught.check if caught else "MISSED"
    line = f"{seconds:6.1f} s  {defect.family:6}  {defect.name}: {check}; {sorted(others)}; {small}"
    print(line, flush=True)
    return defect, caught, others, small


def table(rows):
    names = ["kit", *PEERS]
    lines = [
        "| defect | mechanism | bites | " + " | ".join(names) + " | caught by |",
        "|---|---|---|" + "---|" * (len(names) + 1),
    ]
    totals = dict.fromkeys(names, 0)
    for defect, caught, others, _ in rows:
        seen = [bool(caught), *[peer in others for peer in PEERS]]
        for name, yes in zip(names, seen, strict=True):
            totals[name] += yes
        cells = ["caught" if yes else "-" for yes in seen]
        by = caught.check if caught else ""
        lines.append("| " + " | ".join([defect.name, defect.mechanism, defect.bites, *cells, by])
                     + " |")  # fmt: skip
    total = [f"**{totals[name]} of {len(rows)}**" for name in names]
    lines.append("| **total** | | | " + " | ".join(total) + " | |")
    return lines


FAMILIES = {
    "lstm": "A hand-written LSTM, its backward at fault",
    "engine": "The engine: one rule, the sweep, the record",
    "layer": "Cells and layers",
}


def document(rows, count, peer_count):
    lines = [
        "# Planted defects",
        "",
        "Written by `python -m tests.defects`; each defect is planted alone, and the public checks",
        f"of the kit run on the corners and on the first {count} configurations of profile `ci`",
        f"(which draws {EXAMPLES['ci']}). Beside it: the acceptance rules of torch 2.13",
        "(`gradcheck`, slow and fast), jax 0.10.2 and HIPS autograd 1.9.1 (`check_grads`),",
        "re-implemented in NumPy from what they document, with their default tolerances, on the",
        f"corners and {peer_count} drawn configurations, of primitives in first and second order.",
        "A rule catches a defect if it rejects it on a configuration on which it accepts the",
        "undamaged code.",
        "",
        "Most faults of layers leave every gradient right: what only compares gradients cannot see",
        "them, relations do. A relation enlarges a configuration where it has to (two sequences",
        "for `batch`), so that its counterexample may say N = 1.",
    ]
    for family, title in FAMILIES.items():
        part = [r for r in rows if r[0].family == family]
        if part:
            lines += ["", f"## {title}", "", *table(part)]
    names = ["kit", *PEERS]
    lines += ["", "## Totals", "", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for family in (*FAMILIES, None):
        part = [r for r in rows if family in (r[0].family, None)]
        counts = [sum(bool(r[1]) for r in part), *[sum(p in r[2] for r in part) for p in PEERS]]
        lines.append(f"| {family or 'all'}, {len(part)} defects | "
                     + " | ".join(map(str, counts)) + " |")  # fmt: skip
    lines += [
        "",
        "## Truncation",
        "",
        "T = 64, the state detached before step k, for every k in 1..63; so many are caught:",
        "",
        "| loss on | weights | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for what, subject in (("every step", HandLSTM()), ("the last step", OnlyLast())):
        for scale in (1.0, 0.3):
            counts = truncations(64, subject, scale).values()
            lines.append(f"| {what} | times {scale} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "## Shrinking", ""]
    small = [r[3] for r in rows if r[3] is not None]
    if small:
        middle = [f"{n} = {statistics.median(getattr(c, n) for c in small):g}" for n in "TNDH"]
        lines.append(f"Median counterexample of {len(small)} cell and layer defects: "
                     f"{', '.join(middle)}.")  # fmt: skip
        lines += ["", "| defect | counterexample |", "|---|---|"]
        lines += [f"| {d.name} | `{cfg!r}` |" for d, _, _, cfg in rows if cfg is not None]
    named, of, missed = naming.measure([d for d in engine.DEFECTS if d.composite])
    lines += [
        "", "## The guilty rule", "",
        f"One rule wrong among the many of a composite function: named right in {named} of {of} "
        f"({100 * named / of:.0f} %)" + (f"; not for {', '.join(missed)}." if missed else "."), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="drawn configurations for the kit")
    parser.add_argument("--peers", type=int, default=PEER_COUNT, help="and for the others' rules")
    parser.add_argument("--only", help="names that contain this; nothing is written")
    args = parser.parse_args(argv)
    chosen = [d for d in DEFECTS if args.only is None or args.only in d.name]
    rows = [row(d, args.count, args.peers) for d in chosen]
    text = document(rows, args.count, args.peers)
    print(text)
    if args.only is None:
        (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
