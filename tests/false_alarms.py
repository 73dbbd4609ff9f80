"""Look for false alarms: check what is right, over and over, and count who complains.

Run: ``python -m tests.false_alarms --examples 100000 --seeds 20 --jobs 2``.

Two fifths of the examples are recurrent layers, two fifths primitives, one fifth random graphs;
half of the layers and primitives are float32.  Every example is one run of the gradient check;
the last figures are in the project's README.md.
"""

import argparse
import multiprocessing
import time
import warnings
from collections import Counter

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, settings

from tinygrad_rnn.testing import GradientError, check_grad, check_module, registry, strategies
from tinygrad_rnn.testing.cases import Case


def check_layer(cfg):
    layer = cfg.make()
    lengths = None if cfg.lengths is None else list(cfg.lengths)
    report = check_module(layer, cfg.x(), state=cfg.initial(layer), lengths=lengths, seed=cfg.seed)
    return cfg.dtype, report


def check_primitive(drawn):
    case, dtype = drawn
    case = case.replace(lambda x: x.astype(dtype))
    f, arrays = registry._function(case)
    return dtype, check_grad(f, *arrays, kinks=registry.spec_of(case.op).kinks)


def check_graph(drawn):
    graph, seed = drawn
    arrays = [np.random.default_rng(seed).integers(1, 17, s) / 8 for s in graph.shapes]
    return "float64", check_grad(graph, *arrays)


def primitives():
    st = hypothesis.strategies
    ops = [op for op in registry.all_ops().values() if op.differentiable and op.name != "astype"]
    cases = st.sampled_from(ops).flatmap(lambda op: registry.spec_of(op).cases)
    return st.tuples(cases.filter(some), st.sampled_from(["float64", "float32"]))


def some(case: Case):
    return all(x.size for x in case.inputs)


def graphs():
    st = hypothesis.strategies
    return st.tuples(strategies.graphs(), st.integers(0, 2**16))


KINDS = {
    "layers": (check_layer, strategies.rnn_configs, 0.4),
    "primitives": (check_primitive, primitives, 0.4),
    "graphs": (check_graph, graphs, 0.2),
}


def run(job):
    """Check `count` examples of one kind, drawn from one seed; return what was counted."""
    kind, seed, count = job
    check, strategy, _ = KINDS[kind]
    seen, alarms = Counter(), []

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy())
    def sample(drawn):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dtype, report = check(drawn)
        except GradientError as error:
            alarms.append(f"{drawn!r}\n{error}")
            return
        seen[f"{kind}, {dtype}"] += 1
        seen["inconclusive comparisons"] += report.inconclusive
        seen["comparisons"] += len(report.findings)

    sample()
    return seen, alarms


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args(argv)
    jobs = [
        (kind, seed, round(args.examples * share / args.seeds))
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for kind, (_, _, share) in KINDS.items()
    ]
    start, total, alarms = time.perf_counter(), Counter(), []
    with multiprocessing.Pool(args.jobs) as pool:
        for seen, found in pool.imap_unordered(run, jobs):
            total += seen
            alarms += found
            for text in found:
                print("FALSE ALARM", text, flush=True)
    count = sum(n for name, n in total.items() if "," in name) + len(alarms)
    for name, n in sorted(total.items()):
        print(f"{name:<28}{n:>12,}")
    print(f"{args.seeds} seeds, {time.perf_counter() - start:,.0f} s")
    print(f"RESULT examples={count} false_alarms={len(alarms)}")
    return len(alarms)


if __name__ == "__main__":
    raise SystemExit(main() > 0)
