"""Relations 15 to 23: what holds for every recurrent layer, whatever its cell.

Each takes one ``RNNConfig`` and compares in float64, time first; ``stacking`` looks at
``batch_first``, and ``dtype`` (in another file) at float32.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ...arrays import Array
from ...nn.states import leaves, map_state
from ...scope import no_grad
from ...tensor import Tensor
from ..configs import RNNConfig
from .base import BIT, Claim, Claims, Fact, analytic, relation, slope
from .runs import (
    STATES,
    Run,
    added,
    batch_axis,
    by_hand,
    call,
    clip,
    first_values,
    fixed_start,
    flip,
    join_states,
    like_cells,
    load,
    made,
    parameters,
    plain,
    same,
    same_gradients,
    split_states,
    with_batch,
)


def two_steps(cfg: RNNConfig) -> str | None:
    """Return why a relation between steps does not apply."""
    return "needs two steps: T is 1" if cfg.T < 2 else None


@relation(15, "layer", two_steps)
def carry(cfg: RNNConfig) -> Claims:
    """Claim F(x1 then x2, s) = F(x1, s) then F(x2, s1), the gradient of s1 seeding the first part.

    Takes one direction: a reverse one carries no state forward.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> carry(RNNConfig(nn.GRU, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, bidirectional=False)
    layer, x = made(cfg)
    state, T = cfg.initial(layer), cfg.T
    whole = call(layer, x, state, cfg.lengths)
    us = whole.weights(cfg.seed)
    want = whole.pull(us)
    for k in sorted({1, T // 2, T - 1}):
        first = call(layer, x[:k], state, clip(cfg.lengths, 0, k))
        second = call(layer, x[k:], first.arrays, clip(cfg.lengths, k, T))
        when = f"with the state carried after {k} of {T} steps"
        out = np.concatenate([first.ys[0].data, second.ys[0].data])
        yield from same(when, {**second.values, "out": out}, whole.values)
        later = second.pull([us[0][k:], *us[1:]])
        carried = [later[f"initial state {i}"] for i in range(len(us) - 1)]
        earlier = first.pull([us[0][:k], *carried])
        got = added(parameters(earlier), parameters(later))
        got["x"] = np.concatenate([earlier["x"], later["x"]])
        got |= {n: g for n, g in earlier.items() if n.startswith("initial")}
        yield from same_gradients(cfg, when, got, want)


@relation(16, "layer")
def unroll(cfg: RNNConfig) -> Claims:
    """Claim that a layer is T calls of each cell's ``step``, written as a loop: all gradients too.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> unroll(RNNConfig(nn.LSTM, T=3, lengths=(2,), bidirectional=True)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    layer, x = made(cfg)
    state = cfg.initial(layer)
    run = call(layer, x, state, cfg.lengths)
    hand = by_hand(layer, x, state, cfg.lengths, lambda k, d, t: getattr(layer, f"L{k}")[d])
    us = run.weights(cfg.seed)
    finals, ours = like_cells(layer, run, us)
    values = {"out": run.ys[0].data}
    values |= {f"final state {k}": s.data for k, s in enumerate(finals)}
    yield from same("against the loop by hand", values, hand.values, 1e-12)
    yield from same_gradients(cfg, "against the loop by hand", run.pull(us), hand.pull(ours))


@relation(17, "layer", two_steps)
def causality(cfg: RNNConfig) -> Claims:
    """Claim dy_t/dx_k = 0 exactly for k > t; in the reverse direction, for k < t.

    By NaN planted in x_k, by moving x_k, and by backward.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> causality(RNNConfig(nn.RNN, T=3)).verdict.value
    'right'
    """
    yield from _causal(plain(cfg, bidirectional=False), False)
    if cfg.bidirectional:
        yield from _causal(plain(cfg, layers=1, bidirectional=True), True)


def _causal(cfg: RNNConfig, reverse: bool) -> Claims:
    (layer, x), T = made(cfg), cfg.T
    state = cfg.initial(layer)
    run = call(layer, x, state, cfg.lengths)
    clean = run.ys[0].data
    half = slice(clean.shape[-1] // 2 if reverse else 0, None)
    (u, *zeros), name = run.weights(cfg.seed), "reverse" if reverse else "forward"
    for k in sorted({1, T // 2, T - 1}):  # x splits into [0, k) and [k, T)
        reads, hidden = (slice(k, T), slice(0, k)) if reverse else (slice(0, k), slice(k, T))
        at = k - 1 if reverse else k
        for what, moved in (("NaN", np.nan), ("another number", 1.0)):
            other = x.copy()
            other[at] += moved
            with no_grad():
                out = call(layer, other, state, cfg.lengths).ys[0].data
            yield Claim(f"out of the {name} direction on its side of x_{at + 1}, set to {what},",
                        out[reads, :, half], clean[reads, :, half], BIT)  # fmt: skip
        seed = np.zeros_like(u)
        seed[reads, :, half] = u[reads, :, half]
        g = run.pull([seed, *[0 * z for z in zeros]])["x"][hidden]
        what = f"gradient of the {name} out at t={reads.start + 1}..{reads.stop} at "
        what += f"x_{hidden.start + 1}..x_{hidden.stop}"
        yield Claim(what, g, np.zeros_like(g), BIT)


@relation(18, "layer")
def anti_truncation(cfg: RNNConfig) -> Claims:
    """Claim that the gradient of the final state at every x_k, the far ones too, is complete.

    Each x_k moves in a direction of size 1 / |its gradient|, so that one complex step sees the
    first step as well as the last, however small its gradient.  Where an op of the cell is not
    analytic, the reference is a chain of calls of one step each.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> anti_truncation(RNNConfig(nn.LSTM, T=64, H=2)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    layer, x = made(cfg)
    run = call(layer, x, cfg.initial(layer), cfg.lengths)
    if not analytic(run.ys):
        yield from _by_single_steps(plain(cfg, bidirectional=False))
        return
    _, *us = run.weights(cfg.seed)
    g = run.pull([np.zeros(run.ys[0].shape), *us])["x"]
    rng = np.random.default_rng([cfg.seed, 18])
    r = rng.standard_normal(g.shape)
    if cfg.lengths is not None:
        r *= (np.arange(cfg.T)[:, None] < np.asarray(cfg.lengths))[:, :, None]
    size, unit = (np.sqrt((a**2).sum(axis=(1, 2), keepdims=True)) for a in (g, r))
    past = g[unit[:, 0, 0] == 0]
    yield Claim("gradient of the final state at x past all ends", past, np.zeros_like(past), BIT)
    near = (size > 1e-80) & (unit > 0)
    v = np.where(near, g / size + 0.5 * r / unit, 0.0) / np.where(near, size, 1.0)
    alone = [k for k in range(cfg.T) if unit[k] > 0 and not near[k]]
    steps = [("all x_k together, each with weight 1 / |gradient|", v)] if near.any() else []
    for k in sorted({*alone[:1], *alone[-1:]}):
        steps.append(
            (f"x_{k + 1} of {cfg.T}", np.where(np.arange(cfg.T)[:, None, None] == k, r, 0))
        )
    for what, direction in steps:

        def along(t: Any, direction: Array = direction) -> Any:
            finals = leaves(cfg.run(layer, x + t * direction)[1])
            return sum([np.sum(u * s.data) for u, s in zip(us, finals, strict=True)])

        want, _ = slope(along, run.ys)
        got = float(np.sum(g * direction))
        terms = np.sqrt((g**2).sum(axis=(1, 2)) * (direction**2).sum(axis=(1, 2))).sum()
        yield Fact(
            abs(got - want) <= max(1e-9 * max(terms, abs(want)), 1e-149),
            f"the slope of the final state along {what} is {got!r} by backward, "
            f"{want!r} by a complex step",
        )


def _by_single_steps(cfg: RNNConfig) -> Claims:
    layer, x = made(cfg)
    state = cfg.initial(layer)
    run = call(layer, x, state, cfg.lengths)
    us = run.weights(cfg.seed)
    want = run.pull([np.zeros_like(us[0]), *us[1:]])["x"]
    steps = []
    for t in range(cfg.T):
        steps.append(call(layer, x[t : t + 1], state, clip(cfg.lengths, t, t + 1)))
        state = steps[-1].arrays
    seeds = us[1:]
    for t in reversed(range(cfg.T)):
        g = steps[t].pull([np.zeros_like(us[0][t : t + 1]), *seeds])
        yield Claim(f"gradient of the final state at x_{t + 1} of {cfg.T}", want[t], g["x"][0])
        seeds = [g[f"initial state {k}"] for k in range(len(seeds))] if t else []


@relation(19, "layer")
def batch(cfg: RNNConfig) -> Claims:
    """Claim that sequences of a batch do not meet, and that parameters sum over them.

    F(xP) = F(x)P; dy_n/dx_m = 0 exactly; the gradient of a batch is the sum of those of its
    sequences; of N copies it is N times that of one.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> batch(RNNConfig(nn.GRU, T=2, N=3)).verdict.value
    'right'
    """
    cfg = with_batch(plain(cfg), 2)
    (layer, x), N = made(cfg), cfg.N
    state, lengths = cfg.initial(layer), cfg.lengths
    run = call(layer, x, state, lengths)
    us = run.weights(cfg.seed)
    want = run.pull(us)

    def pick(a: Any, order: Any) -> Any:
        return np.take(a, order, axis=batch_axis(layer))

    def sub(order: Any, us: list[Array] = us) -> tuple[Run, list[Array]]:
        """Run the sequences of an order; return the cotangents that belong to them."""
        moved = None if state is None else map_state(lambda s: pick(s, order), state)
        chosen = None if lengths is None else [lengths[n] for n in order]
        part = call(layer, x[:, order], moved, chosen)
        return part, [us[0][:, order], *[pick(u, order) for u in us[1:]]]

    def part_of(values: dict[str, Array], order: Any) -> dict[str, Array]:
        """Return what belongs to the sequences of an order; parameters belong to all."""
        return {
            n: a[:, order] if n in ("x", "out") else pick(a, order) if n.startswith(STATES) else a
            for n, a in values.items()
        }

    order = np.random.default_rng([cfg.seed, 19]).permutation(N)
    order = order if (order != np.arange(N)).any() else order[::-1]
    moved, seeds = sub(order)
    when = f"with the sequences in the order {order.tolist()}"
    yield from same(when, moved.values, part_of(run.values, order))
    yield from same_gradients(cfg, when, moved.pull(seeds), part_of(want, order))

    singles = []
    for n in range(N):
        one, seeds = sub([n])
        yield from same(f"of sequence {n} alone", one.values, part_of(run.values, [n]))
        singles.append(one.pull(seeds))
        alone = {k: g for k, g in part_of(want, [n]).items() if k == "x" or k.startswith(STATES)}
        yield from same_gradients(cfg, f"of sequence {n} alone", singles[-1], alone)
    total = added(*[parameters(g) for g in singles])
    yield from same_gradients(cfg, "of a batch against its sequences", parameters(want), total)

    rest = [n for n in range(N) if n]
    seeds = [np.zeros_like(u) for u in us]
    seeds[0][:, 0] = us[0][:, 0]
    for name, g in part_of(run.pull(seeds), rest).items():
        if name == "x" or name.startswith(STATES):
            yield Claim(f"gradient of sequence 0 at {name} of the others", g, np.zeros_like(g), BIT)
    poisoned = x.copy()
    poisoned[:, 0] = np.nan
    with no_grad():
        others = part_of(call(layer, poisoned, state, lengths).values, rest)
    yield from same("of the others with NaN in sequence 0", others,
                    part_of(run.values, rest), BIT)  # fmt: skip
    copies, seeds = sub([0] * N)
    N_times = {n: N * g for n, g in parameters(singles[0]).items()}
    when = f"of {N} copies of one sequence"
    yield from same_gradients(cfg, when, parameters(copies.pull(seeds)), N_times)


@relation(20, "layer", fixed_start)
def sharing(cfg: RNNConfig) -> Claims:
    """Claim that a parameter's gradient is the sum over T separate copies of it.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> sharing(RNNConfig(nn.LSTM, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    layer, x = made(cfg)
    state = cfg.initial(layer)
    run = call(layer, x, state, cfg.lengths)
    us = run.weights(cfg.seed)
    copies = [copy.deepcopy(layer) for _ in range(cfg.T)]
    hand = by_hand(layer, x, state, cfg.lengths, lambda k, d, t: getattr(copies[t], f"L{k}")[d])
    for t, other in enumerate(copies):
        hand.leaves |= {f"{n} of step {t}": p for n, p in other.named_parameters()}
    apart = hand.pull(like_cells(layer, run, us)[1])
    got = run.pull(us)
    for name in parameters(got):
        apart[name] = sum([apart[f"{name} of step {t}"] for t in range(cfg.T)])  # type: ignore[assignment]
    yield from same_gradients(cfg, f"against the sum over {cfg.T} copies", got,
                              {n: apart[n] for n in got})  # fmt: skip


def ragged(cfg: RNNConfig) -> RNNConfig:
    """Return the configuration with lengths, one of them 0 and one T where there is room."""
    if cfg.lengths is not None:
        return cfg
    rng = np.random.default_rng([cfg.seed, 21])
    lengths = [int(n) for n in rng.integers(0, cfg.T + 1, cfg.N)]
    if cfg.N > 1:
        lengths[-2:] = [0, cfg.T] if cfg.seed % 2 else [cfg.T, 0]
    return cfg.replace(lengths=tuple(lengths))


@relation(21, "layer", fixed_start)
def padding(cfg: RNNConfig) -> Claims:
    """Claim that nothing past the end of a sequence matters, to no output and no gradient.

    Whatever stands there, NaN too, changes no bit; the output and the gradient there are 0; a
    ragged batch is its sequences run one by one; a longer T changes nothing.  Where the
    configuration has no lengths they are drawn, one of them 0.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> padding(RNNConfig(nn.RNN, T=3, N=2, lengths=(1, 3))).verdict.value
    'right'
    """
    cfg = ragged(plain(cfg))
    (layer, x), T, N = made(cfg), cfg.T, cfg.N
    state, lengths = cfg.initial(layer), list(cfg.lengths or ())
    run = call(layer, x, state, lengths)
    us = run.weights(cfg.seed)
    want = run.pull(us)
    beyond = np.arange(T)[:, None] >= np.asarray(lengths)
    for name, a in (("out", run.ys[0].data), ("gradient of x", want["x"])):
        yield Claim(f"{name} past the ends", a[beyond], np.zeros_like(a[beyond]), BIT)

    for what, filled in (("NaN", np.nan), ("another number", 3.0)):
        other = np.where(beyond[:, :, None], filled, x)
        again = call(layer, other, state, lengths)
        yield from same(f"with {what} past the ends", again.values, run.values, BIT)
        yield from same_gradients(cfg, f"with {what} past the ends", again.pull(us), want, BIT)

    more = np.concatenate([x, np.full((2, *x.shape[1:]), 5.0)])
    longer = call(layer, more, state, lengths)
    values = longer.values
    values["out"] = values["out"][:T]
    yield from same("with T padded by 2", values, run.values)
    seeds = [np.concatenate([us[0], np.ones((2, *us[0].shape[1:]))]), *us[1:]]
    padded = longer.pull(seeds)
    padded["x"] = padded["x"][:T]
    yield from same_gradients(cfg, "with T padded by 2", padded, want)

    total: list[dict[str, Array]] = []
    for n in [n for n in range(N) if lengths[n]]:
        one = None if state is None else map_state(
            lambda s, n=n: np.take(s, [n], axis=batch_axis(layer)), state)  # fmt: skip
        L = lengths[n]
        alone = call(layer, x[:L, n : n + 1], one)
        seeds = [us[0][:L, n : n + 1],
                 *[np.take(u, [n], axis=batch_axis(layer)) for u in us[1:]]]  # fmt: skip
        yield Claim(f"out of sequence {n} in the ragged batch, against it alone",
                    run.ys[0].data[:L, n : n + 1], alone.ys[0].data)  # fmt: skip
        for k, (s, t) in enumerate(zip(run.ys[1:], alone.ys[1:], strict=True)):
            yield Claim(f"final state {k} of sequence {n}, against it alone",
                        np.take(s.data, [n], axis=batch_axis(layer)), t.data)  # fmt: skip
        g = alone.pull(seeds)
        yield from same_gradients(cfg, f"of sequence {n} in the ragged batch, against it alone",
                                  {"x": want["x"][:L, n : n + 1]}, {"x": g["x"]})  # fmt: skip
        total.append(parameters(g))
    if total:
        yield from same_gradients(cfg, "of the ragged batch against its sequences one by one",
                                  parameters(want), added(*total))  # fmt: skip


@relation(22, "layer")
def direction(cfg: RNNConfig) -> Claims:
    """Claim reverse(x) = flip(forward(flip x)), and that two directions are both side by side.

    With both directions tied, turning x around swaps the halves of the output.  Takes one layer
    in both directions.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> direction(RNNConfig(nn.LSTM, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, layers=1, bidirectional=True)
    (layer, x), lengths = made(cfg), cfg.lengths
    state = cfg.initial(layer)
    both = call(layer, x, state, lengths)
    us = both.weights(cfg.seed)
    want, arrays = both.pull(us), layer.state_dict()
    half = both.ys[0].shape[-1] // 2
    finals, seeds = like_cells(layer, both, us)
    states = split_states(layer, state, cfg.N) if state is not None else [None, None]
    total = np.zeros_like(x)
    single = cfg.replace(bidirectional=False)
    per = len(finals) // 2
    for k, name in enumerate(("fwd", "rev")):
        one = load(single.make(), {n.replace(name, "fwd"): a for n, a in arrays.items()
                                   if f".{name}." in n})  # fmt: skip
        turn = (lambda a: flip(a, lengths)) if k else (lambda a: a)
        own = states[k]
        if own is not None:
            own = join_states(one, [own])
        alone = call(one, turn(x), own, lengths)
        side = slice(k * half, (k + 1) * half)
        when = f"of the direction {name} against a layer of its own"
        yield Claim(f"out {when}", both.ys[0].data[..., side], turn(alone.ys[0].data))
        ends = leaves(split_states(one, alone.state, cfg.N)[0])
        for i, (s, t) in enumerate(zip(finals[k * per :], ends, strict=False)):
            yield Claim(f"final state {i} {when}", s.data, t.data)
        cell_seeds = [np.reshape(u, y.shape) for u, y in
                      zip(seeds[1 + k * per :], alone.ys[1:], strict=False)]  # fmt: skip
        g = alone.pull([turn(seeds[0][..., side]), *cell_seeds])
        total += turn(g["x"])
        mine = {n.replace(name, "fwd"): a for n, a in want.items() if f".{name}." in n}
        yield from same_gradients(cfg, when, mine, parameters(g))
    yield from same_gradients(cfg, "against the sum of both directions", want, {"x": total})

    tied = {n: arrays[n.replace(".rev.", ".fwd.")] for n in arrays}
    load(layer, tied)
    straight = call(layer, x, None, lengths).ys[0].data
    turned = call(layer, flip(x, lengths), None, lengths).ys[0].data
    swapped = np.concatenate([turned[..., half:], turned[..., :half]], axis=-1)
    yield Claim("out of x turned around, both directions tied,", flip(swapped, lengths), straight)


@relation(23, "layer")
def stacking(cfg: RNNConfig) -> Claims:
    """Claim that L layers are L single ones on each other, and ``batch_first`` a transposition.

    Takes two layers at least.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> stacking(RNNConfig(nn.GRU, T=2, layers=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, layers=max(cfg.layers, 2))
    (layer, x), lengths = made(cfg), cfg.lengths
    state = cfg.initial(layer)
    run = call(layer, x, state, lengths)
    us = run.weights(cfg.seed)
    want, arrays = run.pull(us), layer.state_dict()
    finals, seeds = like_cells(layer, run, us)
    states = split_states(layer, state, cfg.N) if state is not None else None
    first = first_values(cfg)
    leaf = y = Tensor(np.array(x), requires_grad=True)
    named, ends = {"x": leaf}, []
    for k in range(cfg.layers):
        one = cfg.replace(layers=1, D=x.shape[-1] if k == 0 else y.shape[-1])
        single = load(one.make(), {n.replace(f"L{k}.", "L0.", 1): a for n, a in arrays.items()
                                   if n.startswith(f"L{k}.")})  # fmt: skip
        for n, a in first_values(one).items():
            name = n.replace("L0.", f"L{k}.", 1)
            if name in first:
                yield Claim(f"first value of {name}, against one layer", first[name], a, BIT)
        own = None
        if states is not None:
            mine = states[k * cfg.directions : (k + 1) * cfg.directions]
            own = join_states(single, mine)
        y, end = single(y, own, lengths=None if lengths is None else list(lengths))
        ends += split_states(single, end, cfg.N)
        named |= {n.replace("L0.", f"L{k}.", 1): p for n, p in single.named_parameters()}
    stack = Run(y, tuple(ends), named)
    values = {"out": run.ys[0].data}
    values |= {f"final state {i}": s.data for i, s in enumerate(finals)}
    yield from same(f"against {cfg.layers} single layers", values, stack.values)
    yield from same_gradients(cfg, f"against {cfg.layers} single layers", want, stack.pull(seeds))

    swapped = load(cfg.replace(batch_first=True).make(), arrays)
    other = call(swapped, x.swapaxes(0, 1), state, lengths)
    yield from same("with batch_first", {**other.values, "out": other.ys[0].data.swapaxes(0, 1)},
                    run.values)  # fmt: skip
    grads = other.pull([us[0].swapaxes(0, 1), *us[1:]])
    grads["x"] = grads["x"].swapaxes(0, 1)
    yield from same_gradients(cfg, "with batch_first", grads, want)
