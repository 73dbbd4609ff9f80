"""``python -m tests.mutation``: how many small faults of the framework the checks see."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded

from . import runner
from .areas import AREAS
from .equivalent import EQUIVALENT


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(AREAS), help="areas; default: all")
    parser.add_argument("--match", default="", help="mutants whose key contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--suite", default="all", choices=["all", "kit"], help="which checks")
    parser.add_argument("--report", help="a JSON file of all results")
    parser.add_argument(
        "--listed", action="store_true", help="run those that are listed as equivalent too"
    )
    parser.add_argument("--again", help="a report: run what survived in it, and nothing else")
    args = parser.parse_args(argv)
    began = time.monotonic()
    todo = runner.jobs(args.only, args.match)
    if args.again:
        before = json.loads(Path(args.again).read_text())
        left = {(r["module"], r["key"]) for r in before if r["outcome"] == "survived"}
        todo = [job for job in todo if job.key in left]
    skipped = [job for job in todo if job.key in EQUIVALENT and not args.listed]
    todo = [job for job in todo if job.key not in EQUIVALENT or args.listed]
    areas = list(dict.fromkeys(job.area for job in [*todo, *skipped]))
    plain = [runner.Job(area, "", None) for area in areas]
    for result in runner.run(plain, args.jobs, args.suite):
        if result.outcome != "survived":
            say(f"{result.job.area}: {result.by} fails without a fault: {result.message}")
            return 2
        say(f"{result.job.area}: all checks pass without a fault, {result.seconds:.1f} s")
    results = runner.run(todo, args.jobs, args.suite, tell)
    results += [runner.Result(job, "survived", "", "listed, not run", 0.0) for job in skipped]
    for area in areas:
        say(summary(area, [r for r in results if r.job.area == area]))
    say(f"{summary('all', results)}, {time.monotonic() - began:.0f} s")
    if args.report:
        Path(args.report).write_text(json.dumps([as_dict(r) for r in results], indent=1))
    return int(any(r.outcome == "survived" and r.job.key not in EQUIVALENT for r in results))


def tell(result):
    """Say at once what nobody expects."""
    if result.outcome == "survived" and result.job.key not in EQUIVALENT:
        say(f"SURVIVED {result.job.module}, {result.job.mutant}")
    elif result.outcome != "survived" and result.job.key in EQUIVALENT:
        say(f"NOT EQUIVALENT {result.job.key}: {result.by} says {result.message}")


def summary(name, results):
    ways = Counter(r.outcome for r in results)
    killed = len(results) - ways.pop("survived", 0)
    listed = sum(r.outcome == "survived" and r.job.key in EQUIVALENT for r in results)
    share = killed / len(results) if results else 1.0
    how = ", ".join(f"{n} by {way}" for way, n in sorted(ways.items()))
    return (
        f"{name}: {len(results)} mutants, {killed} killed ({share:.1%}: {how}), "
        f"{listed} equivalent, {len(results) - killed - listed} survived"
    )


def as_dict(r):
    m = r.job.mutant
    return {
        "area": r.job.area, "module": r.job.module, "line": m.line, "key": m.key,
        "kind": m.kind, "outcome": r.outcome, "by": r.by, "message": r.message,
        "seconds": round(r.seconds, 3),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
