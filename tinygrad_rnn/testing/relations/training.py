"""Relations 29 to 31: where a layer starts, in which precision, and what a training step does."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ...arrays import Array
from ...nn.states import leaves, map_state
from ...optim import SGD, Adam, clip_grad_norm
from ...tensor import Tensor
from ..configs import RNNConfig
from .base import BIT, Claim, Claims, Fact, relation
from .runs import (
    Run,
    batch_axis,
    blocks,
    call,
    fixed_start,
    join_states,
    made,
    plain,
    same,
    same_gradients,
)

EPS32 = float(np.finfo(np.float32).eps)


@relation(29, "layer", fixed_start)
def initial_state(cfg: RNNConfig) -> Claims:
    """Claim that no state is the cells' ``initial_state``, and that a state has its gradient.

    It is not zero where the output depends on it, and one state for all sequences gets the sum
    over the batch.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> initial_state(RNNConfig(nn.LSTM, T=2, N=2)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    (layer, x), lengths = made(cfg), cfg.lengths
    none = call(layer, x, None, lengths)
    own = [map_state(np.asarray, cell.initial_state(cfg.N)) for *_, cell in layer.cells()]
    given = call(layer, x, join_states(layer, own), lengths)
    us = none.weights(cfg.seed)
    when = "with the cells' own initial state passed"
    yield from same(when, given.values, none.values, BIT)
    yield from same_gradients(cfg, when, given.pull(us), none.pull(us))

    state = cfg.replace(state="random").initial(layer)
    rows = map_state(lambda s: np.take(s, [0], axis=batch_axis(layer)), state)
    spread = map_state(lambda r: np.repeat(r, cfg.N, axis=batch_axis(layer)), rows)
    run = call(layer, x, spread, lengths)
    g = run.pull(us)
    learned = map_state(lambda r: Tensor(r, requires_grad=True), rows)
    full = iter(leaves(spread))
    broadcast = map_state(lambda t: t + np.zeros_like(next(full)), learned)
    out, final = layer(Tensor(x), broadcast, lengths=None if lengths is None else list(lengths))
    one = Run(out, final, {str(k): t for k, t in enumerate(leaves(learned))}).pull(us)
    for k in range(len(us) - 1):
        got = g[f"initial state {k}"]
        summed = got.sum(axis=batch_axis(layer), keepdims=True)
        yield Claim(f"gradient of initial state {k}, one for the whole batch", one[str(k)], summed)
        if not got.any():
            turn = iter(range(len(us)))
            moved = map_state(lambda a, k=k, it=turn: a + 1e-6 * (next(it) == k), spread)
            other = call(layer, x, moved, lengths)
            pairs = zip(other.ys, run.ys, strict=True)
            slope = max([float(np.abs(a.data - b.data).max()) for a, b in pairs]) / 1e-6
            yield Fact(  # not the curvature, and not a relu that was dead
                slope < 1e-3,
                f"the gradient at initial state {k} is 0, but the output moves {slope:.2g} times "
                f"as far as the state",
            )


@relation(30, "layer")
def dtype(cfg: RNNConfig) -> Claims:
    """Claim that float32 agrees with float64 within 64 eps32, and that +-800 gives no NaN.

    Weights are a quarter of the configuration's, so that 1 - tanh^2 keeps its digits; what the
    result moves when every number moves by one eps32 is allowed besides.  Dropout of p = 0 is
    none, and with the same generator dropout is the same function.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> dtype(RNNConfig(nn.LSTM, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    rng = np.random.default_rng([cfg.seed, 30])
    layer = _scaled(cfg.make(), 0.25)
    x, state = cfg.x(), cfg.initial(layer)
    exact = call(layer, x, state, cfg.lengths)
    us = [u.astype(np.float32).astype(np.float64) for u in exact.weights(cfg.seed)]
    want, values = exact.pull(us), exact.values
    moves: list[dict[str, Array]] = []
    for _ in range(2):

        def jitter(a: Any) -> Any:
            return a * (1 + EPS32 * rng.choice([-1.0, 1.0], np.shape(a)))

        other = copy.deepcopy(layer)
        for p in other.parameters():
            p.data = jitter(p.data)
        moved = None if state is None else map_state(jitter, state)
        near = call(other, jitter(x), moved, cfg.lengths)
        moves.append({**near.values, **near.pull([jitter(u) for u in us])})
    low = cfg.replace(dtype="float32")
    single = _scaled(low.make(), 0.25)
    run = call(single, low.x(), low.initial(single), cfg.lengths)
    for name, a in [*run.values.items(), *(found := run.pull(us)).items()]:
        yield Fact(a.dtype == np.float32, f"{name} of a float32 layer is {a.dtype}")
        full = want[name] if name in want else values[name]
        for text, at in blocks(name, full, cfg.H) if name in found else [("", ...)]:
            b = full[at]
            move = max(float(np.linalg.norm(m[name][at] - b)) for m in moves)
            size = float(np.linalg.norm(b)) or 1.0
            rtol = 64 * EPS32 + 32 * move / size
            yield Claim(f"{name}{text} in float32 against float64", a[at], b, rtol)
    yield from _saturated(cfg.replace(T=min(cfg.T, 4)))
    yield from _dropped(cfg.replace(layers=2, T=min(cfg.T, 3), lengths=None))


def _scaled(layer: Any, factor: float) -> Any:
    for p in layer.parameters():
        p.data = np.asarray(p.data * factor, p.dtype)
    return layer


def _saturated(cfg: RNNConfig) -> Claims:
    cfg = cfg.replace(lengths=None, dtype="float32")
    layer = cfg.make()
    run = call(layer, np.sign(cfg.x()) * np.float32(800), cfg.initial(layer))
    found = {**run.values, **run.pull(run.weights(cfg.seed))}
    bad = [name for name, a in found.items() if not np.isfinite(a).all()]
    yield Fact(not bad, f"inputs of +-800 make {', '.join(bad)} not finite")


def _dropped(cfg: RNNConfig) -> Claims:
    layer, x = cfg.make(), cfg.x()
    state = cfg.initial(layer)

    def run(p: float) -> dict[str, Array]:
        layer.dropout, layer.rng = p, np.random.default_rng(cfg.seed)
        made = call(layer, x, state)
        return {**made.values, **made.pull(made.weights(cfg.seed))}

    layer.eval()
    want = run(0.5)
    layer.train()
    yield from same("with dropout of p = 0", run(0.0), want, BIT)
    yield from same("with the same dropout again", run(0.5), run(0.5), BIT)


@relation(31, "layer")
def optimiser_step(cfg: RNNConfig) -> Claims:
    """Claim f(p - lr g) = f(p) - lr |g|^2 for small lr, and what belongs to a training step.

    Clipping keeps the direction of the gradient; a copy, a loaded state and a loaded file go on
    bit for bit.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> optimiser_step(RNNConfig(nn.RNN, T=2)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    layer, x = made(cfg)
    if not layer.parameters():
        return
    state, start = cfg.initial(layer), layer.state_dict()
    us = call(layer, x, state, cfg.lengths).weights(cfg.seed)

    def loss(of: Any) -> Tensor:
        ys = call(of, x, state, cfg.lengths).ys
        return sum([(y * u).sum() for y, u in zip(ys, us, strict=True)], Tensor(0.0))

    def backward(of: Any) -> float:
        of.zero_grad()
        f = loss(of)
        if f.requires_grad:
            f.backward()
        return float(f.item())

    before = backward(layer)
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    norm = float(np.sqrt(sum([np.sum(g**2) for g in gradients])))
    falls = []
    for size in (1e-3, 1e-5, 1e-6, 1e-4) if norm > 1e-6 else ():
        layer.load_state_dict(start)
        SGD(layer.parameters(), lr=size / norm).step()
        falls.append((before - float(loss(layer).item())) / (size * norm))
        if abs(falls[-1] - 1) < 0.02:
            break
    else:
        yield Fact(
            not falls,
            f"after steps of 1e-3 to 1e-6 along its gradient the loss falls by "
            f"{', '.join([f'{r:.3g}' for r in falls])} times lr |g|^2, not by 1 times",
        )

    layer.load_state_dict(start)
    flat = np.concatenate([g.ravel() for g in gradients] or [np.zeros(1)])
    if norm:
        clip_grad_norm(layer.parameters(), norm / 2)
        clipped = [p.grad for p in layer.parameters() if p.grad is not None]
        yield Claim("the gradient clipped to half its norm",
                    np.concatenate([g.ravel() for g in clipped]), flat / 2)  # fmt: skip

    adam = Adam(layer.parameters(), lr=0.01)
    backward(layer)
    adam.step()
    twins = {"a deep copy": copy.deepcopy(layer), "a loaded state": cfg.make()}
    twins["a loaded state"].load_state_dict(layer.state_dict())
    if cfg.seed % 8 == 0:  # a file waits for the disk
        with tempfile.TemporaryDirectory() as folder:
            layer.save(Path(folder) / "layer.npz")
            twins["a loaded file"] = cfg.make().load(Path(folder) / "layer.npz")
    rest = {name: Adam(twin.parameters(), lr=0.01) for name, twin in twins.items()}
    kept = adam.state_dict()
    for twin in rest.values():
        twin.load_state_dict(kept)
    backward(layer)
    adam.step()
    want = layer.state_dict()
    for name, twin in twins.items():
        backward(twin)
        rest[name].step()
        yield from same(f"one step after {name}", twin.state_dict(), want, BIT)
