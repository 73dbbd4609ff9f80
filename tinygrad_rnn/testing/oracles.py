"""The layers against another engine's: same weights, values, final states and all gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..arrays import Array
from ..nn import GRU, LSTM, RNN, Recurrent
from ..nn.cells import ACTIVATIONS, Cell, GRUCell, LSTMCell, RNNCell
from .configs import grid
from .foreign import Foreign, from_autograd, from_jax, from_torch, need
from .modules import ModuleSubject, from_module
from .options import current
from .report import Finding, GradientError, GradReport, Verdict, publish
from .subject import Block

CELLS: dict[type[Cell], str] = {RNNCell: "RNN", LSTMCell: "LSTM", GRUCell: "GRU"}
FLOOR = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 64 * 2.0**-23}
EPS32 = float(np.finfo(np.float32).eps)
SHOWN = 5  # blocks that a message names
MOVES = 3  # runs that show how ill-conditioned a block is
Gradients = Sequence[Array | None]
Runs = list[Gradients]
Rough = Callable[[], Runs]


class OracleMissing(ImportError):  # noqa: N818  it is no failure
    """The engine that an oracle stands for is not installed: a reason to skip, not to fail."""


def check_against(
    oracle: str, module: Any, *inputs: Any, state: Any = None, lengths: Any = None
) -> GradReport:
    """Compare a layer with the same layer of another engine: values, final states, gradients.

    The oracle computes in float64 from the same numbers.  Every gradient is compared block by
    block (a gate of a parameter, one step of x, the state of one layer), for each output by
    itself and for all together: |got - want| <= rtol max |want|.  rtol is 1e-10 for float64 and
    64 eps for float32, or more where the block is ill-conditioned: 16 times what the oracle
    itself loses in float32, or where its numbers move by one rounding, in units of the layer's eps.

    Parameters
    ----------
    oracle : {"torch", "jax", "autograd"}
        PyTorch's own layers; the layers' equations over ``jax.numpy``, over ``autograd.numpy``.
    module : nn.RNN, nn.LSTM, nn.GRU, or nn.Recurrent over their cells
    *inputs : array_like
        x (T, N, D), (N, T, D) with ``batch_first``, or (T, D).
    state : optional
        As the layer takes it; zero by default.
    lengths : array_like of int (N,), optional

    Returns
    -------
    GradReport

    Raises
    ------
    GradientError
        WRONG where a block differs; UNRELIABLE where the oracle does not know the module.
    OracleMissing
        If the engine is not installed.

    Examples
    --------
    ::

        check_against("torch", nn.LSTM(3, 4, 2, bidirectional=True), x, lengths=[5, 2, 0])
    """
    if oracle not in ORACLES:
        raise ValueError(f"check_against: oracle is one of {', '.join(ORACLES)}, got {oracle!r}")
    if len(inputs) != 1 or isinstance(inputs[0], list | None):
        raise _unknown(module, oracle, "it takes one input, an array (T, N, D) or (T, D)")
    plan = _plan(module, oracle, np.ndim(inputs[0]), lengths)
    try:
        peer = need(oracle, "check_against")
        theirs = ORACLES[oracle](plan)
    except ImportError as error:
        raise OracleMissing(str(error)) from error
    method = f"oracle {oracle} {getattr(peer, '__version__', '')}".rstrip()
    x = np.asarray(inputs[0])
    x = x if x.dtype.kind in "fc" else x.astype(np.float64)  # integers would get no gradient
    subject = from_module(module, x, state=state, lengths=lengths)
    if subject.dtype not in FLOOR:
        raise _unknown(module, oracle, f"it is {subject.dtype}; float32 or float64 is expected")
    report = GradReport(subject.name, _compare(subject, theirs, method), method)
    report.evaluations = subject.evaluations
    publish(report)
    if report.verdict is not Verdict.RIGHT:
        raise GradientError(_message(report), report)
    return report


# --- comparing ------------------------------------------------------------------------------------


def _compare(subject: ModuleSubject, theirs: Foreign, method: str) -> list[Finding]:
    """Compare all values, then the gradients for each output and for all of them."""
    wide = [a.astype("f8") for a in subject.arrays]
    outputs, pull = subject.pull(subject.arrays)
    names = ["y", *[f"{letter}_n" for letter in subject.letters]]
    cuts = [subject.output_blocks(k, y) for k, y in enumerate(outputs)]
    rough = partial(_rough, wide, lambda arrays: theirs.forward(*arrays))
    findings = _differences(cuts, outputs, theirs.forward(*wide), rough, "values", method)
    blocks = [subject.blocks(k) for k in range(len(subject.arrays))]
    seed = (current.seed or 0) + 1
    dense = [grid(y.shape, seed + k).astype(y.dtype) for k, y in enumerate(outputs)]
    for k, name in [*enumerate(names), (None, "all outputs")]:
        u = [v if k in (None, j) else None for j, v in enumerate(dense)]
        back = partial(_back, theirs, u)
        findings += _differences(
            blocks, pull(u), back(wide), partial(_rough, wide, back), name, method
        )
    return findings


def _back(theirs: Foreign, cotangents: Sequence[Array | None], arrays: list[Array]) -> Gradients:
    """Return the oracle's gradients, the cotangents in the precision of the arrays."""
    dtype = arrays[0].dtype
    return theirs.vjp(arrays, [None if u is None else u.astype(dtype) for u in cotangents])


def _rough(wide: list[Array], call: Callable[[list[Array]], Gradients]) -> Runs:
    """Return what the oracle gives in float32, and for numbers moved by one rounding of it."""
    rng = np.random.default_rng(0)
    moved = [[a * (1 + EPS32 * rng.choice([-1, 1], a.shape)) for a in wide] for _ in range(MOVES)]
    return [call(arrays) for arrays in ([a.astype("f4") for a in wide], *moved)]


def _differences(
    blocks: list[list[Block]],
    got: Sequence[Array | None],
    want: Sequence[Array | None],
    rough: Rough,
    what: str,
    method: str,
) -> list[Finding]:
    """Compare arrays block by block; `rough` gives what the oracle makes of rounded numbers."""
    findings = []
    noise: Runs | None = None
    pairs = [(_full(a, b), _full(b, a)) for a, b in zip(got, want, strict=True)]
    largest = max([float(np.abs(b).max(initial=0)) for _, b in pairs], default=0.0)
    for j, (a, b) in enumerate(pairs):
        if a.shape != b.shape:
            raise GradientError(
                f"{method}: {what}, {blocks[j][0][0]}: shape {a.shape}, expected {b.shape}"
            )
        eps = float(np.finfo(a.dtype).eps)
        for label, index in blocks[j]:
            mine, other = a[index], b[index]
            gap = np.abs(np.where(np.isfinite(mine), mine - other, np.inf))
            scale = float(np.abs(other).max(initial=0))
            # what is exactly 0 there may be a sum that only rounding keeps from it here
            tolerance = FLOOR[a.dtype] * scale if scale else 4 * eps * largest
            if gap.max(initial=0) > tolerance and scale:
                noise = rough() if noise is None else noise
                lost = max([float(np.abs(_full(run[j], b)[index] - other).max()) for run in noise])
                tolerance = max(tolerance, 16 * eps / EPS32 * min(lost, scale))
            at = np.unravel_index(int(np.argmax(gap)), gap.shape)
            right = bool(gap.max(initial=0) <= tolerance)
            where = label + (f", entry {[int(i) for i in at]}" if at and not right else "")
            output, name = (where, "value") if what == "values" else (what, where)
            verdict = Verdict.RIGHT if right else Verdict.WRONG
            numbers = float(mine[at]), float(other[at]), float(tolerance)
            findings.append(Finding(output, name, *numbers, 0.0, method, scale, verdict))
    return findings


def _full(a: Array | None, like: Array | None) -> Array:
    """Return an array; zeros for None, where no gradient flows."""
    if a is not None:
        return a
    return np.zeros(1) if like is None else np.zeros_like(like)


def _message(report: GradReport) -> str:
    wrong = [f for f in report.findings if f.verdict is Verdict.WRONG]
    values = [f for f in wrong if f.input == "value"]
    first = max(values or wrong, key=lambda f: f.ratio)
    shown = [_block(f) for f in wrong if f is not first]
    more = f", {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    lines = [
        f"{'values' if values else 'backward'} of {report.what} differ from {report.method}",
        f"where     {_block(first)}",
        f"ours      {first.got:+.9g}          oracle    {first.want:+.9g}",
        f"limit     |difference| <= {first.tolerance:.1e} (largest of the block {first.scale:.1e})",
        f"wrong     {len(wrong)} of {len(report.findings)} comparisons"
        + (f"; also {'; '.join(shown[:SHOWN])}{more}" if shown else ""),
    ]
    return "\n  ".join(lines)


def _block(f: Finding) -> str:
    return f.output if f.input == "value" else f"d {f.output} / d {f.input}"


# --- what is run ----------------------------------------------------------------------------------


@dataclass
class Plan:
    """A layer as a list of cells: what an oracle builds its own from.

    Attributes
    ----------
    cells : list of Cell
        Layer by layer, forward before reverse.
    weights : list of dict
        For each cell, its parameters: the number in the list of free arrays, or a constant.
    """

    module: Any
    oracle: str
    cells: list[Cell]
    weights: list[dict[str, int | Array]]
    batched: bool
    lengths: list[int] | None

    @property
    def stacked(self) -> bool:
        """Whether states are stacked over layers and directions."""
        return type(self.module) is not Recurrent

    def call(self, run: Callable[..., Any], stack: Callable[..., Any], arrays: Any) -> Any:
        """Call ``run(x (T, N, D), a state per cell, weights per cell)`` in these layouts."""
        x, rest = arrays[0], list(arrays[1:])
        counts = [2 if type(cell) is LSTMCell else 1 for cell in self.cells]
        many = counts[0] if self.stacked else sum(counts)
        given, free = rest[:many], rest[many:]
        if self.stacked:
            states = [[s[k] for s in given] for k in range(len(self.cells))]
        else:
            parts = iter(given)
            states = [[next(parts) for _ in range(n)] for n in counts]
        if not self.batched:
            x, states = x[:, None], [[s[None] for s in state] for state in states]
        elif self.module.batch_first:
            x = x.swapaxes(0, 1)
        weights = [
            {name: free[w] if isinstance(w, int) else w for name, w in own.items()}
            for own in self.weights
        ]
        y, finals = run(x, states, weights)
        if not self.batched:
            y, finals = y[:, 0], [[s[0] for s in state] for state in finals]
        elif self.module.batch_first:
            y = y.swapaxes(0, 1)
        if self.stacked:
            return y, *[stack(list(component)) for component in zip(*finals, strict=True)]
        return y, *[s for state in finals for s in state]


def _plan(module: Any, oracle: str, ndim: int, lengths: Any) -> Plan:
    if type(module) not in (RNN, LSTM, GRU, Recurrent):
        raise _unknown(module, oracle)
    cells = [cell for _, _, cell in module.cells()]
    for cell in cells:
        if type(cell) not in CELLS:
            raise _unknown(module, oracle, f"it runs a {type(cell).__name__}")
    if module.dropout and module.training and module.num_layers > 1:
        raise _unknown(module, oracle, "dropout draws a new mask in every call; call eval() first")
    named = list(module.named_parameters())
    free = {id(p): k for k, p in enumerate([p for _, p in named if p.requires_grad])}
    weights: list[dict[str, int | Array]] = [
        {name: free.get(id(p), p.data) for name, p in cell.named_parameters()} for cell in cells
    ]
    listed = None if lengths is None else [int(n) for n in np.asarray(lengths)]
    return Plan(module, oracle, cells, weights, ndim == 3, listed)


def _unknown(module: Any, oracle: str, why: str = "") -> GradientError:
    return GradientError(
        f"{type(module).__name__}: the oracle knows RNN, LSTM, GRU only"
        + (f": {why}" if why else "")
        + f" [{oracle}: {Verdict.UNRELIABLE}]",
        GradReport(type(module).__name__, method=f"oracle {oracle}"),
        Verdict.UNRELIABLE,
    )


def _activation(plan: Plan, cell: Any, known: Sequence[str]) -> str:
    """Return the name of a cell's activation."""
    name = next((n for n, f in ACTIVATIONS.items() if f is cell.activation), "of your own")
    if name not in known:
        raise _unknown(plan.module, plan.oracle, f"of activations {', '.join(known)}, not {name}")
    return name


def _one_by_one(
    run: Callable[..., Any], xp: Any, lengths: Sequence[int], x: Any, states: Any, weights: Any
) -> tuple[Any, Any]:
    """Run each sequence by itself over its own steps; lay the results side by side."""
    outputs, finals = [], []
    for n, length in enumerate(lengths):
        own = [[s[n : n + 1] for s in state] for state in states]
        y, last = run(x[: max(length, 1), n : n + 1], own, weights)
        blank = xp.zeros((len(x), *y.shape[1:]), dtype=x.dtype)
        outputs.append(xp.concatenate([y[:length], blank[length:]]))
        finals.append(last if length else own)  # an empty sequence keeps its initial state
    return xp.concatenate(outputs, 1), [
        [xp.concatenate(list(rows)) for rows in zip(*cell, strict=True)]
        for cell in zip(*finals, strict=True)
    ]


# --- the equations over a namespace like NumPy's --------------------------------------------------


def _equations(plan: Plan, xp: Any) -> Callable[..., Any]:
    """Return the layer as a function of arrays, written over the functions of `xp`."""
    phi = {"tanh": xp.tanh, "relu": lambda a: a * (a > 0), "identity": lambda a: a}
    steps = [_step(plan, cell, xp, phi) for cell in plan.cells]
    sides = plan.module.num_directions

    def run(x: Any, states: Any, weights: Any) -> tuple[Any, Any]:
        finals = []
        rows = [x[t] for t in range(len(x))]
        for k in range(0, len(steps), sides):
            halves = []
            for j in range(k, k + sides):
                state, outputs = states[j], []
                for row in rows[::-1] if j > k else rows:
                    state = steps[j](weights[j], row, *state)
                    outputs.append(state[0])
                halves.append(outputs[::-1] if j > k else outputs)
                finals.append(state)
            rows = [xp.concatenate(list(both), 1) for both in zip(*halves, strict=True)]
        return xp.stack(rows), finals

    def layer(*arrays: Any) -> Any:
        if plan.lengths is None:
            return plan.call(run, xp.stack, arrays)
        return plan.call(
            lambda *given: _one_by_one(run, xp, plan.lengths or [], *given), xp.stack, arrays
        )

    return layer


def _step(plan: Plan, cell: Any, xp: Any, phi: dict[str, Any]) -> Callable[..., list[Any]]:
    """Return one step of a cell, ``(weights, x, *state) -> state``, as its docstring has it."""
    H = cell.hidden_size

    def sigmoid(a: Any) -> Any:
        return (1 + xp.tanh(a / 2)) / 2

    def gates(a: Any) -> list[Any]:
        return [a[..., k : k + H] for k in range(0, a.shape[-1], H)]

    def lstm(w: Any, x: Any, h: Any, c: Any) -> list[Any]:
        i, f, g, o = gates(x @ w["W_x"] + h @ w["W_h"] + w.get("b", 0))
        c = sigmoid(f) * c + sigmoid(i) * xp.tanh(g)
        return [sigmoid(o) * xp.tanh(c), c]

    def gru(w: Any, x: Any, h: Any) -> list[Any]:
        x_r, x_z, x_n = gates(x @ w["W_x"] + w.get("b", 0))
        h_r, h_z, h_n = gates(h @ w["W_h"])
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        h_n = r * (h_n + w.get("b_hn", 0)) if cell.reset_after else (r * h) @ w["W_h"][:, 2 * H :]
        n = xp.tanh(x_n + h_n)
        return [n + z * (h - n)]

    if type(cell) is RNNCell:
        f = phi[_activation(plan, cell, list(phi))]
        return lambda w, x, h: [f(x @ w["W_x"] + h @ w["W_h"] + w.get("b", 0))]
    return lstm if type(cell) is LSTMCell else gru


def _jax(plan: Plan) -> Foreign:
    return from_jax(_equations(plan, need("jax.numpy", "check_against")))


def _autograd(plan: Plan) -> Foreign:
    return from_autograd(_equations(plan, need("autograd.numpy", "check_against")))


# --- PyTorch's own layers -------------------------------------------------------------------------


def _torch(plan: Plan) -> Foreign:
    """Return PyTorch's layer as a function of tensors; its weights are made of ours."""
    torch = need("torch", "check_against")
    first: Any = plan.cells[0]
    biased = {"b" in own for own in plan.weights}
    kind = (type(first), first.hidden_size)
    if len(biased) > 1 or any((type(c), c.hidden_size) != kind for c in plan.cells):
        raise _unknown(plan.module, "torch", "its cells are of one kind, one size")
    settings: dict[str, Any] = {}
    if type(first) is RNNCell:
        names = {_activation(plan, cell, ["tanh", "relu"]) for cell in plan.cells}
        if len(names) > 1:
            raise _unknown(plan.module, "torch", "its cells have one activation")
        settings["nonlinearity"] = names.pop()
    if not all(getattr(cell, "reset_after", True) for cell in plan.cells):
        raise _unknown(plan.module, "torch", "PyTorch's GRU has no reset_after=False")
    build = getattr(torch.nn, CELLS[type(first)])
    utils = torch.nn.utils.rnn

    def run(x: Any, states: Any, weights: Any) -> tuple[Any, Any]:
        peer = build(
            x.shape[2], first.hidden_size, plan.module.num_layers, bias=biased == {True},
            bidirectional=plan.module.num_directions == 2,
            device="meta", dtype=x.dtype, **settings,  # on no device: no random numbers are drawn
        )  # fmt: skip
        for name, value in _torch_weights(torch, plan, weights, x.dtype):
            delattr(peer, name)
            setattr(peer, name, value)  # no Parameter: the gradient goes on to our weights
        initial = [torch.stack(part) for part in zip(*states, strict=True)]
        hidden = tuple(initial) if len(initial) == 2 else initial[0]
        ragged = plan.lengths is not None and x.shape[1] == len(plan.lengths) and all(plan.lengths)
        if ragged:
            packed = utils.pack_padded_sequence(x, plan.lengths, enforce_sorted=False)
            y, last = peer(packed, hidden)
            y = utils.pad_packed_sequence(y, total_length=len(x))[0]
        else:
            y, last = peer(x, hidden)
        parts = last if isinstance(last, tuple) else (last,)
        return y, [[s[k] for s in parts] for k in range(len(plan.cells))]

    def layer(*arrays: Any) -> Any:
        if plan.lengths is None or all(plan.lengths):
            return plan.call(run, torch.stack, arrays)
        return plan.call(
            lambda *given: _one_by_one(run, torch, plan.lengths or [], *given), torch.stack, arrays
        )

    return from_torch(layer)


def _torch_weights(
    torch: Any, plan: Plan, weights: list[dict[str, Any]], dtype: Any
) -> Iterator[tuple[str, Any]]:
    """Yield PyTorch's names and what they hold in terms of our weights."""
    for j, own in enumerate(weights):
        k, side = divmod(j, plan.module.num_directions)
        end = f"l{k}" + ("_reverse" if side else "")
        w = {name: torch.as_tensor(value, dtype=dtype) for name, value in own.items()}
        yield f"weight_ih_{end}", w["W_x"].T
        yield f"weight_hh_{end}", w["W_h"].T
        if "b" in w:
            yield f"bias_ih_{end}", w["b"]
            zeros = torch.zeros_like(w["b"])
            tail = [w["b_hn"]] if "b_hn" in w else []
            head = zeros[: len(zeros) - sum(len(t) for t in tail)]
            yield f"bias_hh_{end}", torch.cat([head, *tail])


ORACLES: dict[str, Callable[[Plan], Foreign]] = {
    "torch": _torch,
    "jax": _jax,
    "autograd": _autograd,
}
