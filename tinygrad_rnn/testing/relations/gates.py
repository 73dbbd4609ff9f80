"""Relations 24 to 28: what holds for the gates of RNN, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from typing import Any

import numpy as np

from ...arrays import Array
from ...nn import GRUCell, LSTMCell, RNNCell
from ...nn.states import map_state
from ...scope import no_grad
from ...tensor import Tensor
from ..configs import RNNConfig
from .base import BIT, Claim, Claims, relation
from .runs import Run, blocks, call, load, made, parameters, plain, same, same_gradients

# the gate that carries the sign of a unit: the one behind tanh
CANDIDATE = {RNNCell: 0, LSTMCell: 2, GRUCell: 2}
NAMES = ("W_x", "W_h", "b", "b_hn")


def known(cfg: RNNConfig) -> str | None:
    """Return why a relation about gates does not apply."""
    layer = cfg.make()
    if not all(isinstance(cell, tuple(CANDIDATE)) for *_, cell in layer.cells()):
        return "knows the gates of RNN, LSTM and GRU only"
    other = [n for n, _ in layer.named_parameters() if n.split(".", 2)[-1] not in NAMES]
    return f"knows W_x, W_h, b and b_hn only, not {other[0]}" if other else None


def odd(cfg: RNNConfig) -> str | None:
    """Return why a relation about signs does not apply."""
    for *_, cell in cfg.make().cells() if known(cfg) is None else ():
        if isinstance(cell, RNNCell):
            a = np.array([0.25, 0.75])
            if not np.array_equal(_apply(cell.activation, -a), -_apply(cell.activation, a)):
                return "the activation is not odd"
    return known(cfg)


def _apply(activation: Callable[[Any], Any], a: Array) -> Array:
    return np.asarray(activation(Tensor(a)).data)


def _kind(layer: Any) -> type:
    cell = next(layer.cells())[2]
    return next(kind for kind in CANDIDATE if isinstance(cell, kind))


Change = Callable[[str, Array], Array]


def _changed(change: Change, of: Mapping[str, Array]) -> dict[str, Array]:
    return {name: change(name, a) for name, a in of.items()}


def _compare(
    cfg: RNNConfig, when: str, change: Change, x: Array | None = None, rtol: float = 1e-9
) -> Claims:
    """Claim that changing every parameter, state and cotangent changes the results alike.

    ``change(name, array)`` is orthogonal: it acts on gradients as it acts on what they are of.
    """
    layer, given = made(cfg)
    state = cfg.initial(layer)
    run = call(layer, given, state, cfg.lengths)
    us = run.weights(cfg.seed)
    other = load(cfg.make(), _changed(change, layer.state_dict()))
    moved = None if state is None else map_state(lambda s: change("state", s), state)
    again = call(other, change("x", given), moved, cfg.lengths)
    names = [n if n == "out" else "state" for n in run.values]
    seeds = [change(n, u) for n, u in zip(names, us, strict=True)]
    values = {n: change("out" if n == "out" else "state", a) for n, a in run.values.items()}
    yield from same(when, again.values, values, rtol)
    grads = {
        n: change("state" if n.startswith("initial") else n, g) for n, g in run.pull(us).items()
    }
    yield from same_gradients(cfg, when, again.pull(seeds), grads, rtol)


@relation(24, "layer", known)
def unit_permutation(cfg: RNNConfig) -> Claims:
    """Claim that permuting the hidden units, in all gates and states, permutes every gradient.

    Takes two units at least.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> unit_permutation(RNNConfig(nn.LSTM, T=2, H=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, H=max(cfg.H, 2))
    order = np.random.default_rng([cfg.seed, 24]).permutation(cfg.H)
    order = order if (order != np.arange(cfg.H)).any() else order[::-1]

    def gates(n: int) -> Array:
        return np.concatenate([k * cfg.H + order for k in range(n // cfg.H)])

    def change(name: str, a: Array) -> Array:
        if name == "x":
            return a
        a = a[..., gates(a.shape[-1])]
        rows = name.endswith("W_h") or (name.endswith("W_x") and not name.startswith("L0."))
        return a[gates(a.shape[0])] if rows else a

    yield from _compare(cfg, f"with the units in the order {order.tolist()}", change)


@relation(25, "layer", known)
def reparametrisation(cfg: RNNConfig) -> Claims:
    """Claim that x A with A^-1 W_x gives the same, and that columns of zeros change nothing.

    The gradient of x is that of x A times A', the gradient of A^-1 W_x is A' times that of W_x.
    A bias is the weight of a column of ones.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> reparametrisation(RNNConfig(nn.GRU, T=2, D=2)).verdict.value
    'right'
    """
    cfg = plain(cfg)
    rng = np.random.default_rng([cfg.seed, 25])
    layer, x = made(cfg)
    state = cfg.initial(layer)
    run = call(layer, x, state, cfg.lengths)
    us = run.weights(cfg.seed)
    want, start = run.pull(us), layer.state_dict()
    first = [n for n in start if n.startswith("L0.") and n.endswith("W_x")]

    Q = np.linalg.qr(rng.standard_normal((cfg.D, cfg.D)))[0]
    scale = 2.0 ** rng.integers(-1, 2, cfg.D)
    A, inverse = Q * scale, (Q / scale).T
    other = load(cfg.make(), {n: inverse @ a if n in first else a for n, a in start.items()})
    again = call(other, x @ A, state, cfg.lengths)
    yield from same("with x A and A^-1 W_x", again.values, run.values)
    got = again.pull(us)
    got["x"] = got["x"] @ A.T
    grads = {n: A.T @ g if n in first else g for n, g in want.items()}
    yield from same_gradients(cfg, "with x A and A^-1 W_x", got, grads)

    wide = cfg.replace(D=cfg.D + 2)
    other = wide.make()
    extra = {n: a[cfg.D :] for n, a in other.state_dict().items() if n in first}
    load(other, {n: np.concatenate([a, extra[n]]) if n in first else a for n, a in start.items()})
    again = call(other, np.concatenate([x, np.zeros((*x.shape[:2], 2))], -1), state, cfg.lengths)
    yield from same("with two columns of zeros in x", again.values, run.values)
    got = again.pull(us)
    for n in first:
        yield Claim(f"gradient of {n} at columns of zeros", got[n][cfg.D :], 0 * extra[n], BIT)
    got = {n: g[..., : cfg.D] if n == "x" else g[: cfg.D] if n in first else g
           for n, g in got.items()}  # fmt: skip
    yield from same_gradients(cfg, "with two columns of zeros in x", got, want)
    if cfg.bias and all(n[:-3] + "b" in start for n in first):
        yield from _bias_as_weight(cfg, start, state, run, want)


def _bias_as_weight(
    cfg: RNNConfig, start: dict[str, Array], state: Any, run: Run, want: dict[str, Array]
) -> Claims:
    wide = cfg.replace(D=cfg.D + 1)
    moved = dict(start)
    for n in [n for n in start if n.startswith("L0.") and n.endswith("W_x")]:
        b = n[:-3] + "b"
        moved[n], moved[b] = np.concatenate([start[n], start[b][None]]), np.zeros_like(start[b])
    other = load(wide.make(), moved)
    x = np.concatenate([run.leaves["x"].data, np.ones((cfg.T, cfg.N, 1))], -1)
    again = call(other, x, state, cfg.lengths)
    yield from same("with b as the weight of a column of ones", again.values, run.values)
    got = again.pull(run.weights(cfg.seed))
    for n in [n for n in start if n.startswith("L0.") and n.endswith("W_x")]:
        b = n[:-3] + "b"
        for text, at in blocks(b, want[b], cfg.H):
            yield Claim(f"gradient of the weight of a column of ones{text} against that of {b}",
                        got[n][-1][at], want[b][at])  # fmt: skip


@relation(26, "layer", known)
def gate_limits(cfg: RNNConfig) -> Claims:
    """Claim what shut and open gates do: one layer, one direction, biases of +-800.

    LSTM: f = 1, i = 0 carry c_0 and its gradient unchanged; f = 0 leaves no path to c_0; o = 0
    gives h = 0.  GRU: z = 1 carries h_0.  RNN: W_h = 0 treats each step by itself.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> gate_limits(RNNConfig(nn.LSTM, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, layers=1, bidirectional=False, bias=True, state="random")
    (layer, x), H = made(cfg), cfg.H
    state, kind = cfg.initial(layer), _kind(layer)
    b = next(layer.cells())[2].b
    start = b.data.copy()

    def limit(**gates: float) -> Run:
        """Run with the biases of some gates set."""
        b.data = start.copy()
        for name, value in gates.items():
            at = ("ifgo" if kind is LSTMCell else "rzn").index(name) * H
            b.data[at : at + H] = value
        return call(layer, x, state, cfg.lengths)

    if kind is LSTMCell:
        kept = limit(f=800.0, i=-800.0)
        u = [0 * y.data for y in kept.ys[:2]] + [kept.weights(cfg.seed)[2]]
        yield Claim("c_T with f = 1 and i = 0, against c_0", kept.ys[2].data, state[1], BIT)
        g = kept.pull(u)
        yield Claim("gradient of c_T at c_0 with f = 1 and i = 0", g["initial state 1"], u[2], BIT)
        dropped = limit(f=-800.0)
        ran = np.ones(cfg.N, bool) if cfg.lengths is None else np.array(cfg.lengths) > 0
        path = dropped.pull(dropped.weights(cfg.seed))["initial state 1"][..., ran, :]
        yield Claim("gradient at c_0 with f = 0", path, np.zeros_like(path), BIT)
        shut = limit(o=-800.0).ys[0].data
        yield Claim("out with o = 0", shut, np.zeros_like(shut), BIT)
    elif kind is GRUCell:
        kept = limit(z=800.0)
        u = [0 * kept.ys[0].data, kept.weights(cfg.seed)[1]]
        yield Claim("h_T with z = 1, against h_0", kept.ys[1].data, state, BIT)
        g = kept.pull(u)
        yield Claim("gradient of h_T at h_0 with z = 1", g["initial state 0"], u[1], BIT)
    else:
        cell = next(layer.cells())[2]
        cell.W_h.data = np.zeros_like(cell.W_h.data)
        run = call(layer, x, state, cfg.lengths)
        with no_grad():
            each = (
                call(layer, x.reshape((1, -1, cfg.D)), None).ys[0].data.reshape((cfg.T, cfg.N, H))
            )
        if cfg.lengths is not None:
            each = each * (np.arange(cfg.T)[:, None] < np.array(cfg.lengths))[:, :, None]
        yield Claim("out with W_h = 0, against each step by itself", run.ys[0].data, each)
        seeds = run.weights(cfg.seed)
        ran = np.ones(cfg.N, bool) if cfg.lengths is None else np.array(cfg.lengths) > 0
        path = run.pull(seeds)["initial state 0"][..., ran, :]
        yield Claim("gradient at h_0 with W_h = 0", path, np.zeros_like(path), BIT)


# --- closed forms --------------------------------------------------------------------------------


@relation(27, "layer", known)
def closed_form(cfg: RNNConfig) -> Claims:
    """Claim dh_T/dx_k = W_x W_h^(T-k) of a linear RNN, and scalar cells to 50 digits.

    The scalar cell is one of H = D = N = 1 and at most three steps, in decimal arithmetic.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> closed_form(RNNConfig(nn.LSTM, T=3)).verdict.value
    'right'
    """
    cfg = plain(cfg, layers=1, bidirectional=False)
    layer, x = made(cfg)
    cell = next(layer.cells())[2]
    if isinstance(cell, RNNCell):
        cell.activation = lambda a: a
        run = call(layer, x, cfg.initial(layer))
        _, u = run.weights(cfg.seed)
        g = run.pull([0 * run.ys[0].data, u])["x"]
        v = u.reshape(cfg.N, cfg.H)
        for k in reversed(range(cfg.T)):
            yield Claim(f"gradient of h_T at x_{k + 1} of a linear RNN with T={cfg.T}",
                        g[k], v @ cell.W_x.data.T)  # fmt: skip
            v = v @ cell.W_h.data.T
    yield from _scalar(cfg.replace(T=min(cfg.T, 3), N=1, D=1, H=1, lengths=None, state="random"))


def _sigma(a: Decimal) -> Decimal:
    return 1 / (1 + (-a).exp())


def _tanh(a: Decimal) -> Decimal:
    e = (-2 * a).exp()
    return (1 - e) / (1 + e)


def _decimal_step(cell: Any, p: dict[str, list[Decimal]], x: Decimal, s: list[Decimal]) -> Any:
    """Return the next state of a cell of one unit; its first number is the output."""
    zero = [Decimal(0)] * 4
    W, U, b = p["W_x"], p["W_h"], p.get("b", zero)
    a = [x * w + c for w, c in zip(W, b, strict=False)]
    r = [s[0] * u for u in U]
    if isinstance(cell, LSTMCell):
        i, f, g, o = [one + two for one, two in zip(a, r, strict=True)]
        c = _sigma(f) * s[1] + _sigma(i) * _tanh(g)
        return [_sigma(o) * _tanh(c), c]
    if isinstance(cell, GRUCell):
        reset, z = _sigma(a[0] + r[0]), _sigma(a[1] + r[1])
        inner = r[2] + p["b_hn"][0] if "b_hn" in p else r[2]
        return [(1 - z) * _tanh(a[2] + reset * inner) + z * s[0]]
    return [_tanh(a[0] + r[0])]


def _scalar(cfg: RNNConfig) -> Claims:
    layer, x = made(cfg)
    cell = next(layer.cells())[2]
    if isinstance(cell, RNNCell):
        a = np.array([0.5])
        if not np.array_equal(_apply(cell.activation, a), np.tanh(a)):
            return
    state = cfg.initial(layer)
    run = call(layer, x, state)
    us = run.weights(cfg.seed)
    found = run.pull(us)
    with localcontext() as context:
        context.prec = 50
        step = Decimal(10) ** -20
        point = {n: [Decimal(float(v)) for v in np.ravel(t.data)] for n, t in run.leaves.items()}
        seeds = [[Decimal(float(v)) for v in np.ravel(u)] for u in us]

        def loss() -> Decimal:
            p = {n.rsplit(".", 1)[-1]: v for n, v in point.items()}
            s = [v[0] for n, v in point.items() if n.startswith("initial")]
            total = Decimal(0)
            for t, xt in enumerate(point["x"]):
                s = _decimal_step(cell, p, xt, s)
                total += seeds[0][t] * s[0]
            return total + sum([u[0] * v for u, v in zip(seeds[1:], s, strict=True)], Decimal(0))

        value = sum([float(np.sum(u * y.data)) for u, y in zip(us, run.ys, strict=True)])
        size = 2 * sum([float(np.sum(abs(u * y.data))) for u, y in zip(us, run.ys, strict=True)])
        yield Claim("the weighted sum of outputs of a scalar cell, + twice its terms' size",
                    value + size, float(loss()) + size)  # fmt: skip
        for name, numbers in point.items():
            for k, number in enumerate(numbers):
                numbers[k] = number + step
                plus = loss()
                numbers[k] = number - step
                slope = (plus - loss()) / (2 * step)
                numbers[k] = number
                yield Claim(f"gradient of {name}, number {k}, of a scalar cell against 50 digits",
                            np.ravel(found[name])[k], float(slope))  # fmt: skip


# --- signs -----------------------------------------------------------------------------------


@relation(28, "layer", odd)
def sign_symmetry(cfg: RNNConfig) -> Claims:
    """Claim that a unit turned over, in all that it reads and writes, changes sign and no more.

    Its column of the candidate gate (g of the LSTM, n of the GRU), its bias there, its row of
    W_h and its states change sign.  An RNN without bias turns over as a whole: F(-x, -s) =
    -F(x, s), with the same gradients of the weights.  Takes one layer.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> sign_symmetry(RNNConfig(nn.LSTM, T=2, H=2)).verdict.value
    'right'
    """
    cfg = plain(cfg, layers=1)
    H, layer = cfg.H, cfg.make()
    kind, unit = _kind(layer), cfg.seed % cfg.H
    signs = np.ones(H)
    signs[unit] = -1

    def change(name: str, a: Array) -> Array:
        if name == "x":
            return a
        if name in ("out", "state"):
            return a * np.tile(signs, a.shape[-1] // H)
        turned = np.array(a)
        at = 0 if name.endswith("b_hn") else CANDIDATE[kind] * H
        turned[..., at : at + H] *= signs
        return turned * signs[:, None] if name.endswith("W_h") else turned

    yield from _compare(cfg, f"with unit {unit} turned over", change)
    if kind is RNNCell:
        bare = cfg.replace(bias=False)
        layer, x = made(bare)
        state = bare.initial(layer)
        if any(n.endswith(".b") for n, _ in layer.named_parameters()):
            return
        run = call(layer, x, state, cfg.lengths)
        turned = call(layer, -x, None if state is None else map_state(lambda s: -s, state),
                      cfg.lengths)  # fmt: skip
        us = run.weights(cfg.seed)
        when = "of -x and -s against -F(x, s)"
        yield from same(when, turned.values, {n: -a for n, a in run.values.items()})
        want = {n: g if n in parameters({n: g}) else -g for n, g in run.pull(us).items()}
        yield from same_gradients(cfg, when, turned.pull([-u for u in us]), want)
