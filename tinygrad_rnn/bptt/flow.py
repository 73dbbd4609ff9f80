"""How a gradient flows back through time, measured on the graph of a loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import autodiff, graph
from ..arrays import Array
from ..errors import GraphError
from ..module import Module
from ..nn import Cell, Recurrent, RNNCell
from ..ops import unbroadcast
from ..scope import Call
from ..tensor import Tensor

Key = tuple[int, str, int, str]  # layer, direction, step, name
Use = tuple[Tensor, int]  # a node that reads a value, and as which input


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """How the gradient of a loss E flows back through a recurrent layer: what `report` returns.

    Norms are 2-norms over H for each sample, and the mean of these over N.  A step that does not
    reach the loss, as one beyond the end of its sequence, counts as 0.  Derivatives are total:
    with all that a change of the value changes later on.  Step t = 1..T has the index t - 1.
    Rows of a frozen cell whose states are not in the graph of the loss are NaN: where nothing
    below requires a gradient either, they were not recorded.

    Attributes
    ----------
    rows : tuple of str
        What the rows of the arrays belong to: ``("L0.fwd", "L0.rev", "L1.fwd", ...)``.
    h_norm : ndarray (layers * directions, T)
        ``|dE/dh(t)|``.
    c_norm : ndarray (layers * directions, T)
        ``|dE/dc(t)|``; NaN in the rows of cells without a cell state c.
    c_from_c : ndarray (layers * directions, T)
        The norm of the part of dE/dc(t) that comes along the conveyor, straight from c(t + 1):
        for an LSTM, of f(t + 1) * dE/dc(t + 1).
    c_from_h : ndarray (layers * directions, T)
        The norm of the part that comes through h(t): for an LSTM, of
        o(t) * (1 - tanh(c(t))^2) * dE/dh(t).  The two parts add up to dE/dc(t).
    transfer : ndarray (T,)
        The spectral norm of the Jacobian dh(T)/dh(t) of the top layer's forward direction, where
        T is the last step of each sample that reaches the loss; its mean over N.
    terms : dict of str to ndarray (T, shape of the weight)
        The term of each step in the gradient of each weight: they sum to ``.grad``.
    samples : int
        N.
    """

    rows: tuple[str, ...]
    h_norm: Array
    c_norm: Array
    c_from_c: Array
    c_from_h: Array
    transfer: Array
    terms: dict[str, Array]
    samples: int

    def __repr__(self) -> str:
        _, T = self.h_norm.shape
        return f"Report({', '.join(self.rows)}, T={T}, N={self.samples})"

    def __str__(self) -> str:
        """Return a table of the norms at no more than 12 steps."""
        T = self.h_norm.shape[1]
        columns = []
        for row, h, c in zip(self.rows, self.h_norm, self.c_norm, strict=True):
            columns.append((row, "|dE/dh|", h))
            if not np.isnan(c).all():
                columns.append((row, "|dE/dc|", c))
        width = max(9, *[len(row) for row in self.rows])
        lines = [
            f"{'':>6}" + "".join([f"  {row:>{width}}" for row, _, _ in columns]),
            f"{'t':>6}" + "".join([f"  {name:>{width}}" for _, name, _ in columns]),
        ]
        for t in np.unique(np.linspace(0, T - 1, min(T, 12)).round().astype(int)):
            lines.append(f"{t + 1:>6}" + "".join([f"  {a[t]:>{width}.3e}" for _, _, a in columns]))
        return "\n".join(lines)


def report(loss: Tensor, layer: Module, *, transfer: bool = True, terms: bool = True) -> Report:
    """Measure how the gradient of a loss flows back through a recurrent layer, step by step.

    Parameters
    ----------
    loss : Tensor
        A scalar E, computed from one call of `layer`.
    layer : Recurrent, or Module with one inside
    transfer : bool
        Whether to measure dh(T)/dh(t): H sweeps over the graph of the top layer and, for the
        Jacobians of all steps at once, T N H H numbers.
    terms : bool
        Whether to split the gradients of the weights: T times the numbers of the weights.

    Returns
    -------
    Report
        ``print(report)`` shows a table; what was not measured is NaN, or an empty dict.

    Raises
    ------
    GraphError
        If the loss is no scalar or was not recorded; if no step of the layer is in its graph, as
        under ``no_grad()``, where steps are recomputed or compiled, where all lengths are 0 or
        nothing requires a gradient; if several calls are.
    TypeError, ValueError
        If the loss is no Tensor; if `layer` is no module, or contains no recurrent layer or more
        than one.

    Notes
    -----
    Beside what is returned, the gradients of all states and of all results of a read of a weight
    are held: for an LSTM 16 T N H numbers for each layer and direction.  What no step of the call
    contributes, as a penalty on the weights does, is in no term; what no step reads, as a learned
    initial state, has none.

    Examples
    --------
    A linear recurrent neuron, h(t) = 0.9 h(t - 1) + x(t), whose gradient vanishes as 0.9^(T - t):

    >>> from tinygrad_rnn import nn
    >>> layer = nn.RNN(1, 1, bias=False, activation="identity", dtype=np.float64)
    >>> layer.load_state_dict({"L0.fwd.W_x": [[1.0]], "L0.fwd.W_h": [[0.9]]})
    >>> out, h = layer(np.ones((4, 1, 1)))
    >>> found = report(out[-1].sum(), layer)
    >>> found.h_norm.round(4)
    array([[0.729, 0.81 , 0.9  , 1.   ]])
    >>> found.terms["L0.fwd.W_x"].ravel().round(4)
    array([0.729, 0.81 , 0.9  , 1.   ])
    >>> print(found)
               L0.fwd
         t    |dE/dh|
         1  7.290e-01
         2  8.100e-01
         3  9.000e-01
         4  1.000e+00
    """
    recurrent = _recurrent_in(layer)
    if not isinstance(loss, Tensor):
        raise TypeError(f"report: loss is a {type(loss).__name__}: expected a scalar Tensor")
    seed = autodiff.seed(loss, None)
    order = graph.nodes((loss,), requiring=True)
    weights = dict(recurrent.named_parameters())
    reads = _uses(order, weights.values())
    call = _call_of(order, reads, recurrent)
    steps = [t for t in order if t.place and t.place.call is call and t.place.step is not None]
    states = _states(steps, recurrent)
    T, N = call.steps or 0, len(next(iter(states.values())).data)

    conveyors = _uses(order, [t for (*_, name), t in states.items() if name == "c"])
    inside = {t.order for t in steps}
    elsewhere = {
        k for k, uses in reads.items() if uses and all(t.order not in inside for t, _ in uses)
    }
    reads = {k: [use for use in uses if use[0].order in inside] for k, uses in reads.items()}
    wanted = {t.order: t for t in states.values()}
    wanted |= {t.order: t for part in (reads, conveyors) for uses in part.values() for t, _ in uses}
    found = autodiff.gradients((loss,), list(wanted.values()), (seed,))
    gradient = dict(zip(wanted, found, strict=True))

    rows = [(f"L{k}.{direction}", k, direction, cell) for k, direction, cell in recurrent.cells()]
    h_norm, c_norm, c_from_c, c_from_h = norms = np.zeros((4, len(rows), T))
    for row, (_, k, direction, cell) in enumerate(rows):
        if "c" not in cell.states:
            norms[1:, row] = np.nan
        if not any([key[:2] == (k, direction) for key in states]) and _is_frozen(cell):
            norms[:, row] = np.nan
            continue
        for t in range(T):
            h = states.get((k, direction, t, cell.states[0]))
            c = states.get((k, direction, t, "c"))
            if h is not None:
                h_norm[row, t] = _norm(gradient[h.order])
            if c is not None:
                c_norm[row, t] = _norm(gradient[c.order])
                straight, through = _split(c, h, conveyors[c.order], gradient)
                c_from_c[row, t], c_from_h[row, t] = _norm(straight), _norm(through)
    row = len(rows) - recurrent.num_directions
    top, name = recurrent.num_layers - 1, rows[row][-1].states[0]
    transfer = transfer and not np.isnan(h_norm[row]).any()
    return Report(
        tuple([row for row, *_ in rows]),
        h_norm,
        c_norm,
        c_from_c,
        c_from_h,
        _transfer([states.get((top, "fwd", t, name)) for t in range(T)], gradient, transfer),
        {
            name: _terms(p, reads[p.order], gradient, T)
            for name, p in weights.items()
            if terms and p.requires_grad and p.order not in elsewhere
        },
        N,
    )


# --- what of the graph belongs to the layer ------------------------------------------------------


def _recurrent_in(layer: Module) -> Recurrent:
    """Return the only recurrent layer in a module."""
    if not isinstance(layer, Module):
        raise TypeError(f"report: layer is a {type(layer).__name__}: expected a recurrent layer")
    found = [(name, m) for name, m in layer.named_modules() if isinstance(m, Recurrent)]
    if len(found) != 1:
        names = ", ".join([name for name, _ in found]) or "none"
        raise ValueError(
            f"report: {type(layer).__name__} contains {len(found)} recurrent layers ({names}): "
            f"pass the one to look at"
        )
    return found[0][1]


def _uses(order: Iterable[Tensor], values: Iterable[Tensor]) -> dict[int, list[Use]]:
    """Return, for each value, the nodes that read it and as which input."""
    found: dict[int, list[Use]] = {t.order: [] for t in values}
    for t in order:
        for k, x in enumerate(t.inputs):
            if x.order in found:
                found[x.order].append((t, k))
    return found


def _call_of(order: list[Tensor], reads: dict[int, list[Use]], layer: Recurrent) -> Call:
    """Return the only call of a layer in a graph: known by who reads the layer's weights."""
    readers = [t for uses in reads.values() for t, _ in uses]
    if not reads:  # cells without weights are known by their place alone
        readers = [t for t in order if t.place and t.place.call.path == layer.path]
    places = [t.place for t in readers if t.place and t.place.step is not None]
    calls = list({id(place.call): place.call for place in places}.values())
    who = f"{type(layer).__name__}{f' {layer.path}' if layer.path else ''}"
    if not calls:
        raise GraphError(
            f"report: the graph of the loss has no step of {who}: compute the loss from this "
            f"layer, with all its steps on record (no checkpoint_every), outside no_grad(), with "
            f"lengths that are not all 0, and with weights or an input that require a gradient"
        )
    if len(calls) > 1:
        raise GraphError(
            f"report: the graph of the loss has {len(calls)} calls of {who}: pass a loss that "
            f"was computed from one"
        )
    return calls[0]


def _states(steps: list[Tensor], layer: Recurrent) -> dict[Key, Tensor]:
    """Return the states in the graph by layer, direction, step and name."""
    called = {(k, d): {name: name for name in cell.states} for k, d, cell in layer.cells()}
    for k, direction, cell in layer.cells():
        if _is_linear(cell):  # its h is the node a
            called[k, direction]["a"] = cell.states[0]
    found: dict[Key, Tensor] = {}
    for t in steps:
        p = t.place
        if t.op is not None and p is not None and p.layer is not None and p.step is not None:
            side = (p.layer, str(p.direction))
            if t.name in called[side]:
                found[(*side, p.step, called[side][t.name])] = t
    if not found:
        names = ", ".join(dict.fromkeys([name for side in called.values() for name in side]))
        raise GraphError(
            f"report: no state of the layer, called {names}, reaches the loss; "
            f"Cell.states says what a cell's states are called"
        )
    return found


def _is_frozen(cell: Cell) -> bool:
    return not any([p.requires_grad for p in cell.parameters()])


def _is_linear(cell: Cell) -> bool:
    """Return whether a plain cell hands on its weighted sum as it is."""
    probe = Tensor(np.zeros((1, cell.hidden_size), cell.dtype))
    return isinstance(cell, RNNCell) and cell.activation(probe) is probe


# --- what is measured ----------------------------------------------------------------------------


def _norm(g: Array | None) -> float:
    """Return the mean over samples of the 2-norms of (N, ...), without underflow."""
    return 0.0 if g is None else float(_norms(g).mean())


def _norms(g: Array) -> Array:
    a = np.abs(g.reshape(len(g), -1)).astype(np.float64)
    most = a.max(axis=1)
    scale = np.where(most > 0, most, 1.0)
    root: Array = scale * np.sqrt(np.square(a / scale[:, None]).sum(axis=1))
    return root


def _part(t: Tensor, k: int, g: Array | None) -> Array:
    """Return what node `t`, at which `g` arrived, sends to its input number `k`."""
    x, op = t.inputs[k], t.op
    sent = None
    if g is not None and op is not None:
        values = [v.data for v in t.inputs]
        if op.rule_all is not None:
            sent = op.rule_all(g, t.data, *values, **t.attrs)[k]
        else:
            rule = op.rules[k] if k < len(op.rules) else None
            sent = None if rule is None else rule(g, t.data, *values, **t.attrs)
    return np.zeros_like(x.data) if sent is None else unbroadcast(sent, x.data.shape)


def _terms(weight: Tensor, reads: list[Use], gradient: dict[int, Any], T: int) -> Array:
    """Return the gradient of a weight, step by step."""
    terms = np.zeros((T, *weight.shape), weight.dtype)
    for t, k in reads:
        terms[t.place.step] += _part(t, k, gradient[t.order])  # type: ignore[union-attr]
    return terms


def _split(
    c: Tensor, h: Tensor | None, uses: list[Use], gradient: dict[int, Any]
) -> tuple[Array, Array]:
    """Return dE/dc(t) in two parts: what does not come through h(t), and what does."""
    between: set[int] = set()  # nodes on the way from c(t) to h(t)
    stack = [] if h is None else [h]
    while stack:
        t = stack.pop()
        if t.order > c.order and t.order not in between:
            between.add(t.order)
            stack.extend(t.inputs)
    parts = np.zeros((2, *c.shape), c.dtype)
    for t, k in uses:
        parts[int(t.order in between)] += _part(t, k, gradient[t.order])
    return parts[0], parts[1]


def _transfer(states: list[Tensor | None], gradient: dict[int, Any], wanted: bool) -> Array:
    """Return the spectral norm of dh(T)/dh(t) for each t, with H sweeps for all t at once."""
    norms = np.full(len(states), 0.0 if wanted else np.nan)
    nodes = {t: h for t, h in enumerate(states) if h is not None}
    if not nodes or not wanted:
        return norms
    some = next(iter(nodes.values()))
    N, H = len(some.data), some.data[0].size
    last = np.full(N, -1)  # the step of each sample that its loss is reached from last
    for t, h in nodes.items():
        if gradient[h.order] is not None:
            last[np.flatnonzero(_norms(gradient[h.order]))] = t
    ends = [t for t in nodes if (last == t).any()]
    order = graph.nodes([nodes[t] for t in ends], requiring=True)
    path = graph.reach(order, list(nodes.values()))
    order = [t for t in order if t.order in path]
    keep = {h.order for h in nodes.values()}
    J = np.zeros((len(states), N, H, H), some.dtype)
    for k in range(H):
        seeds = []
        for t in ends:
            seed = np.zeros((N, H), some.dtype)
            seed[last == t, k] = 1
            seeds.append((nodes[t], seed.reshape(some.shape)))
        found = autodiff.sweep(order, path, seeds, keep)
        for t, h in nodes.items():
            if h.order in found:
                J[t, :, k] = found[h.order].reshape(N, H)
    for t in nodes:
        norms[t] = np.linalg.norm(J[t].astype(np.float64), 2, axis=(1, 2)).mean()
    return norms
