"""Faults in cells and in the layers that unroll them; most of them leave every gradient right."""

from contextlib import contextmanager

from tinygrad_rnn import nn
from tinygrad_rnn.nn import GRUCell, LSTMCell, Recurrent
from tinygrad_rnn.nn.stacked import _Stacked

from .planting import Defect, edit, patched

ENDED = "new = keep_past_end(Tensor(valid[t, :, None]), new, state)"
SHOWN = "out = zero_past_end(out, given.valid.T if axis else given.valid)"
STEP = "result = cell.step(inputs[t], state)"
KEPT = "outputs[t], state = y, new"
VALID = "x = ops.where(valid[:, :, None], x, 0.0)  # not even a NaN beyond the end matters"
HIDDEN = "h = o * tanh(c)"
CELL = "c = f * c + i * g"


def _row(name, mechanism, bites, *edits, plant=None):
    return Defect(name, "layer", mechanism, bites, plant or edit(*edits))


def unroll(*changes):
    return (Recurrent, "_unroll", *changes)


@contextmanager
def _leaks_state():
    """Let a layer without a given state go on where its last call ended."""
    saves = edit(
        *unroll(
            (
                "return outputs, state\n",
                (
                    "cell.__dict__['kept'] = map_state("
                    "lambda s: s.detach(), state)\n    return outputs, state\n"
                ),
            )
        )
    )
    reads = edit(
        Recurrent,
        "_initial",
        (
            "if state is None:",
            (
                "if state is None and structure(cell.__dict__.get('kept', ())) == "
                "structure(template):\n        return cell.__dict__['kept']\n    if state is None:"
            ),
        ),
    )
    with saves(), reads():
        yield


@contextmanager
def _bias_starts_on_layer_0():
    init = _Stacked.__init__

    def start(self, *args, **kwargs):
        init(self, *args, **kwargs)
        for layer, _, cell in self.cells():
            if layer and isinstance(cell, LSTMCell) and hasattr(cell, "b"):
                cell.b.data[...] = 0

    with patched(_Stacked, "__init__", start):
        yield


DEFECTS = [
    _row(
        "padding not masked",
        "values beyond a length enter the step, masked only behind it",
        "NaN in the padding",
        Recurrent,
        "_read",
        (VALID, "pass"),
    ),
    _row(
        "padding in the output",
        "the output goes on past the end of its sequence",
        "lengths",
        Recurrent,
        "_join",
        (SHOWN, "pass"),
    ),
    _row(
        "state runs past the end",
        "the last state is that of step T, not of the last valid one",
        "lengths",
        *unroll((ENDED, "pass")),
    ),
    _row(
        "reverse starts at T",
        "the reverse direction runs over the padding first",
        "lengths, two directions",
        *unroll((ENDED, f"{ENDED}\n            new = result[1] if place[2] == 'rev' else new")),
    ),
    _row(
        "length off by one",
        "one step past the end counts",
        "lengths",
        Recurrent,
        "_read",
        ("np.arange(T)[:, None] < lengths", "np.arange(T)[:, None] <= lengths"),
    ),
    _row(
        "a length of 0 is 1",
        "an empty sequence runs one step",
        "a length of 0",
        Recurrent,
        "_read",
        (
            "lengths = self._check_lengths(lengths, T, N, read)",
            "lengths = np.maximum(self._check_lengths(lengths, T, N, read), 1)",
        ),
    ),
    _row(
        "padding written into x",
        "the input is masked in place",
        "lengths",
        Recurrent,
        "_read",
        (VALID, "(x.data if isinstance(x, Tensor) else x)[~valid] = 0"),
    ),
    _row(
        "forget bias on layer 0",
        "the forget gate's bias of 1 acts on layer 0 only",
        "2 layers",
        LSTMCell,
        "step",
        ("sigmoid(f)", "sigmoid(f + 1.0 * self.path.startswith('L0'))"),
    ),
    _row(
        "forget bias starts on layer 0",
        "only layer 0 starts with a forget bias of 1",
        "2 layers, first values",
        plant=_bias_starts_on_layer_0,
    ),
    _row(
        "detached at step 2",
        "the state loses its history once",
        "T > 2",
        *unroll((KEPT, f"{KEPT} if t != 1 else map_state(lambda s: s.detach(), new)")),
    ),
    _row(
        "layer 1 reads the input",
        "the second layer gets x, where the sizes fit",
        "D = H, 2 layers",
        Recurrent,
        "forward",
        (
            "loop(inputs, states.pop(0))",
            (
                "loop(cut(given.x) if k == 1 and given.x.shape[2] == cell.input_size "
                "else inputs, states.pop(0))"
            ),
        ),
    ),
    _row(
        "directions swapped",
        "the reverse half comes first in the output",
        "two directions",
        Recurrent,
        "_merge",
        ("zip(*sides, strict=True)", "zip(*sides[::-1], strict=True)"),
    ),
    _row(
        "reverse state from the start",
        "the final state of the reverse direction is its first",
        "two directions, T > 1",
        *unroll(
            ("first = True", "first, last = True, None"),
            (KEPT, f"{KEPT}\n        last = new if last is None or place[2] == 'fwd' else last"),
            ("return outputs, state\n", "return outputs, state if last is None else last\n"),
        ),
    ),
    _row(
        "final states in reverse",
        "the last layer's state comes first in h_n",
        "2 layers",
        Recurrent,
        "forward",
        ("finals.append(final)", "finals.insert(0, final)"),
    ),
    _row(
        "batch mixed",
        "the candidate is centred over the batch",
        "N > 1",
        LSTMCell,
        "step",
        (CELL, "c = f * c + i * (g - 0.125 * g.mean(axis=0, keepdims=True))"),
    ),
    _row(
        "batch_first reshapes",
        "the input is reshaped where it must be transposed",
        "batch_first",
        Recurrent,
        "_read",
        ("x = x.transpose(1, 0, 2)", "x = x.reshape(x.shape[1], x.shape[0], x.shape[2])"),
    ),
    _row(
        "initial state without gradient",
        "the state that is passed is detached",
        "a state",
        Recurrent,
        "_initial",
        (
            "state = as_tensors(state, cell.dtype)",
            "state = map_state(lambda s: s.detach(), as_tensors(state, cell.dtype))",
        ),
    ),
    _row(
        "no state is not zero",
        "without a state the first step is given ones",
        "no state",
        Recurrent,
        "_initial",
        (
            "return cell.first_state(given.batch)",
            "return map_state(lambda s: s + 1, as_tensors(template))",
        ),
    ),
    _row(
        "state kept between calls",
        "without a state a layer goes on where its last call ended",
        "two calls",
        plant=_leaks_state,
    ),
    _row(
        "dropout of the gradient",
        "a tenth of the gradient of h is dropped, not of h",
        "anywhere",
        LSTMCell,
        "step",
        (
            HIDDEN,
            (
                f"{HIDDEN}\n    keep = Tensor(np.asarray(np.random.default_rng()."
                "random(h.shape) < 0.9, h.dtype))\n    h = h.detach() + (h - h.detach()) * keep"
            ),
        ),
    ),
    _row(
        "weights copied at step 3",
        "later steps use a copy: their gradient is lost",
        "T > 2",
        *unroll(
            (
                STEP,
                (
                    "result = (cell if t < 2 else __import__('copy').deepcopy(cell))"
                    ".step(inputs[t], state)"
                ),
            )
        ),
    ),
    _row(
        "float64 in a float32 layer",
        "the output is float64",
        "float32",
        *unroll(
            (
                KEPT,
                ("outputs[t], state = (y.astype(np.float64) if y.dtype == np.float32 else y), new"),
            )
        ),
    ),
    _row(
        "reads the next step",
        "step t is given x_{t+1}",
        "T > 1",
        *unroll((STEP, "result = cell.step(inputs[min(t + 1, T - 1)], state)")),
    ),
    _row(
        "chunks of 32 steps",
        "the state starts anew every 32 steps",
        "T > 32",
        *unroll(
            (
                STEP,
                (
                    "result = cell.step(inputs[t], state if t % 32 or not t else "
                    "map_state(lambda s: s * 0, state))"
                ),
            )
        ),
    ),
    _row(
        "naive logistic",
        "e^x / (1 + e^x) is NaN where it saturates",
        "large values",
        LSTMCell,
        "step",
        ("tanh(g), sigmoid(o)", "tanh(g), (lambda e: e / (1 + e))(2.718281828459045**o)"),
    ),
    _row(
        "update gate inverted",
        "h = z n + (1 - z) h', as in another paper",
        "GRU",
        GRUCell,
        "step",
        ("(1 - z) * n + z * h", "z * n + (1 - z) * h"),
    ),
    _row(
        "two units keep",
        "the cell state of the third unit and those after it is lost",
        "H > 2",
        LSTMCell,
        "step",
        (CELL, ("c = f * c * Tensor(np.asarray(np.arange(c.shape[1]) < 2, c.dtype)) + i * g")),
    ),
    _row(
        "update gate is not per unit",
        "GRU's z of unit 0 is everybody's",
        "H > 1",
        GRUCell,
        "step",
        ("(1 - z) * n + z * h", "(1 - z[:, :1]) * n + z[:, :1] * h"),
    ),
]

CELLS = (nn.RNN, nn.LSTM, nn.GRU)
