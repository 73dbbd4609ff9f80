"""One recorded call of a layer, by itself or unrolled by hand, and the blocks of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ... import ops
from ...arrays import Array
from ...nn import GRU, LSTM, RNN
from ...nn.states import as_tensors, leaves, map_state
from ...tensor import Tensor
from ..configs import RNNConfig
from ..modules import learned
from .base import RTOL, Claim, Claims, pull

STACKED = (RNN, LSTM, GRU)  # their states are (layers * directions, N, H)
STATES = ("initial state ", "final state ")  # no name of a parameter has a space
GATES = {3: "rzn", 4: "ifgo"}
Lengths = Sequence[int] | None


class Run:
    """A recorded call: outputs, states and what they are differentiated by.

    Attributes
    ----------
    ys : list of Tensor
        The output, then the arrays of the final state.
    state
        The final state, nested.
    leaves : dict of str to Tensor
        ``x``, ``initial state 0``, ... and the parameters by name.
    """

    def __init__(self, out: Tensor, state: Any, leaves_: dict[str, Tensor]) -> None:
        self.ys, self.state, self.leaves = [out, *leaves(state)], state, leaves_

    @property
    def values(self) -> dict[str, Array]:
        """The output and the final state."""
        out, *finals = self.ys
        return {"out": out.data, **{f"final state {k}": s.data for k, s in enumerate(finals)}}

    @property
    def arrays(self) -> Any:
        """The final state as arrays, nested."""
        return map_state(lambda s: s.data, self.state)

    def weights(self, seed: int = 0) -> list[Array]:
        """Return a random cotangent for each output: of random numbers, so that none cancel."""
        rng = np.random.default_rng([seed, 23])
        return [np.asarray(rng.standard_normal(y.shape), y.dtype) for y in self.ys]

    def pull(self, us: Sequence[Any]) -> dict[str, Array]:
        """Return the gradient of sum <u, y> at every leaf, by name."""
        found = pull(self.ys, list(self.leaves.values()), us)
        return dict(zip(self.leaves, found, strict=True))


def call(layer: Any, x: Any, state: Any = None, lengths: Lengths = None) -> Run:
    """Call a layer on leaves of its own."""
    leaf, initial, named = _leaves(layer, x, state)
    out, final = layer(leaf, initial, lengths=None if lengths is None else list(lengths))
    return Run(out, final, named)


def _leaves(layer: Any, x: Any, state: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
    leaf = Tensor(np.array(x), requires_grad=True)
    initial = None
    if state is not None:
        initial = map_state(lambda s: Tensor(np.array(s), requires_grad=True), state)
    named = {"x": leaf}
    named |= {
        f"initial state {k}": s for k, s in enumerate([] if initial is None else leaves(initial))
    }
    return leaf, initial, named | dict(layer.named_parameters())


def by_hand(
    layer: Any, x: Any, state: Any, lengths: Lengths, cell_at: Callable[[int, str, int], Any]
) -> Run:
    """Unroll the cells by a loop of our own; ``cell_at(layer, direction, t)`` gives the cell.

    The final state is a tuple of the cells' states.
    """
    leaf, initial, named = _leaves(layer, x, state)
    T, N = leaf.shape[:2]
    states = split_states(layer, initial, N)
    inputs: list[Any] = [leaf[t] for t in range(T)]
    valid = np.ones((T, N)) if lengths is None else np.arange(T)[:, None] < np.asarray(lengths)
    finals: list[Any] = []
    for k in range(layer.num_layers):
        sides = []
        for direction in getattr(layer, f"L{k}"):
            now = states[len(finals)]
            outs: list[Any] = [None] * T
            for t in reversed(range(T)) if direction == "rev" else range(T):
                y, new = cell_at(k, direction, t).step(inputs[t], now)
                inside = valid[t].astype(y.dtype)
                outs[t], now = _blend(inside, y, None), _blend(inside, new, now)
            sides.append(outs)
            finals.append(now)
        inputs = [ops.concat(*y, axis=-1) if len(y) > 1 else y[0] for y in zip(*sides, strict=True)]
    return Run(ops.stack(*inputs), tuple(finals), named)


def _blend(inside: Array, new: Any, old: Any) -> Any:
    """Return `new` for the sequences inside, `old`, or zero, for the others: by products."""
    if isinstance(new, tuple):
        return tuple([_blend(inside, a, b) for a, b in zip(new, old, strict=True)])
    if inside.all():
        return new
    mask = inside.reshape((-1,) + (1,) * (new.ndim - 1))
    return new * mask if old is None else new * mask + old * (1 - mask)


def split_states(layer: Any, state: Any, batch: int) -> list[Any]:
    """Return the state of each cell, of a layer's state or of its initial one."""
    cells = [cell for *_, cell in layer.cells()]
    if state is None:
        return [as_tensors(cell.initial_state(batch)) for cell in cells]
    if isinstance(layer, STACKED):
        return [map_state(lambda s, k=k: s[k], state) for k in range(len(cells))]
    return [state] if len(cells) == 1 else list(state)


def join_states(layer: Any, states: Sequence[Any]) -> Any:
    """Return the arrays of the cells' states as the layer takes them."""
    if not isinstance(layer, STACKED):
        return states[0] if len(states) == 1 else tuple(states)
    if isinstance(states[0], tuple):
        return tuple([np.stack(parts) for parts in zip(*states, strict=True)])
    return np.stack(states)


def like_cells(layer: Any, run: Run, us: list[Array]) -> tuple[list[Any], list[Array]]:
    """Return final states and cotangents of a layer in the order of its cells."""
    left = iter(us[1:])
    nested = map_state(lambda s: next(left), run.state)
    N = run.ys[0].shape[1]
    finals = leaves(tuple(split_states(layer, run.state, N)))
    seeds: list[Any] = leaves(tuple(split_states(layer, nested, N)))
    return finals, [us[0], *seeds]


def clip(lengths: Any, start: int, stop: int) -> list[int] | None:
    """Return the lengths of the part start:stop of each sequence."""
    return None if lengths is None else [min(max(n - start, 0), stop - start) for n in lengths]


def flip(a: Array, lengths: Any) -> Array:
    """Return (T, N, ...) with each sequence turned around within its length."""
    if lengths is None:
        return a[::-1]
    turned = a.copy()
    for n, L in enumerate(lengths):
        turned[:L, n] = a[:L, n][::-1]
    return turned


def load(layer: Any, arrays: dict[str, Array]) -> Any:
    """Put arrays into the parameters of these names; returns the layer."""
    for name, p in layer.named_parameters():
        p.data = np.array(arrays[name])
    return layer


# --- blocks ----------------------------------------------------------------------------------


def blocks(name: str, a: Array, H: int) -> list[tuple[str, Any]]:
    """Return the parts that have a scale of their own: steps of x, gates of a parameter."""
    if name == "x":
        return [(f" at t={t + 1}", t) for t in range(len(a))]
    gates, rest = divmod(a.shape[-1], H) if a.ndim else (1, 0)
    if name.startswith(STATES) or rest or gates < 2:
        return [("", ...)]
    letters = GATES.get(gates, "123456789"[:gates] if gates < 10 else "")
    return [
        (f", gate {letters[k]}" if letters else f", block {k}", (..., slice(k * H, k * H + H)))
        for k in range(gates)
    ]


def same(
    when: str, got: Mapping[str, Array], want: Mapping[str, Array], rtol: float = RTOL
) -> Claims:
    """Claim that outputs agree."""
    for name, a in want.items():
        yield Claim(f"{name} {when}", got[name], a, rtol)


def same_gradients(
    cfg: RNNConfig,
    when: str,
    got: Mapping[str, Array],
    want: Mapping[str, Array],
    rtol: float = RTOL,
) -> Claims:
    """Claim that gradients agree, block by block."""
    for name, a in want.items():
        if got[name].shape != a.shape:
            yield Claim(f"gradient of {name} {when}", got[name], a, rtol)
            continue
        for text, at in blocks(name, a, cfg.H):
            yield Claim(f"gradient of {name}{text} {when}", got[name][at], a[at], rtol)


def added(*gradients: Mapping[str, Array]) -> dict[str, Array]:
    """Return the sum of gradients by name."""
    names = dict.fromkeys([name for g in gradients for name in g])
    return {n: np.sum([g[n] for g in gradients if n in g], axis=0) for n in names}


def parameters(gradients: Mapping[str, Array]) -> dict[str, Array]:
    """Return the gradients of the parameters alone."""
    return {n: g for n, g in gradients.items() if n != "x" and not n.startswith(STATES)}


def plain(cfg: RNNConfig, **changes: Any) -> RNNConfig:
    """Return the configuration in float64 and time first, as relations compare it."""
    return cfg.replace(**{"dtype": "float64", "batch_first": False, **changes})


def made(cfg: RNNConfig) -> tuple[Any, Array]:
    """Return the layer and its input, off their grid: there no sum cancels at a kink of relu."""
    layer, x, rng = cfg.make(), cfg.x(), np.random.default_rng([cfg.seed, 29])
    for p in layer.parameters():
        p.data = np.asarray(p.data + rng.uniform(-0.01, 0.01, p.shape), p.dtype)
    return layer, x + rng.uniform(-0.01, 0.01, x.shape)


def with_batch(cfg: RNNConfig, least: int) -> RNNConfig:
    """Return a configuration of at least so many sequences; their lengths repeat."""
    N = max(cfg.N, least)
    if cfg.lengths is None:
        return cfg.replace(N=N)
    return cfg.replace(N=N, lengths=tuple((list(cfg.lengths) * N)[:N]))


def batch_axis(layer: Any) -> int:
    """Return the axis of the batch in the states of a layer: 1 where they are stacked."""
    return int(isinstance(layer, STACKED))


def first_values(cfg: RNNConfig) -> dict[str, Array]:
    """Return what a new layer's parameters start with, where that is not drawn: its biases."""
    new, other = cfg.fresh(), cfg.replace(seed=cfg.seed + 1).fresh()
    twins = dict(other.named_parameters())
    return {
        name: p.data
        for name, p in new.named_parameters()
        if p.ndim == 1 and np.array_equal(p.data, twins[name].data)  # a drawn 1x1 W_h is +-1
    }


def fixed_start(cfg: RNNConfig) -> str | None:
    """Return why a relation that passes initial states does not apply."""
    starts = [cell.first_state(1) for _, _, cell in cfg.fresh().cells()]
    return "passes initial states, and this cell learns its own" if learned(starts) else None
