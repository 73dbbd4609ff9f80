"""Encoder and decoder: one sequence in, another one out, each of its own length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..arrays import Array
from ..errors import ShapeError
from ..functional import cross_entropy
from ..module import Module, evaluating, floating
from ..ops import tanh
from ..scope import NEVER, no_grad, scope
from ..tensor import Parameter, Tensor
from . import decoding, symbols
from .attention import BahdanauAttention, LuongAttention, Memory
from .cells import check_sizes
from .layers import Embedding, Linear
from .noise import check_rates
from .recurrent import Recurrent
from .stacked import LSTM
from .states import first_of

ATTENTIONS: dict[str, Callable[..., Any]] = {
    "bahdanau": BahdanauAttention,
    "luong": LuongAttention,
}


class EncoderDecoder(Module):
    """A translator: one layer reads the source, the next one writes the target (Fig 14-15).

    ::

        c = last state of encoder(embedding(source, reversed))
        h(u) = decoder(embedding(y(u-1)), h(u-1)),  h(0) = c,  y(0) = <go>
        logits(u) = h(u) W + b

    The encoder's last state is the decoder's first one, and the source is read backwards, so
    that its beginning is near the beginning of the target (Sutskever, Vinyals, Le 2014).  The
    decoder reads the symbol that it should have written before (teacher forcing), and is asked
    for the next one; after the last symbol it is asked for ``<eos>``.  Callers pass sources and
    targets without ``<go>`` and ``<eos>``, and get answers without them.

    Sources are integers (T, N) and targets integers (U, N), with lengths (N,) where they are
    ragged; or lists of N sequences of their own lengths.  What stands beyond a length does not
    matter.

    Parameters
    ----------
    source_size, target_size : int
        How many symbols the two vocabularies have, the target's ``<go>`` and ``<eos>`` included.
    hidden_size : int
        H of both layers.
    embedding_size : int, optional
        D of both embeddings; by default H.
    layer : callable
        ``layer(D, H, num_layers, dtype=, rng=)`` returns a recurrent layer in one direction:
        RNN, LSTM, GRU or a function that makes another one.
    num_layers : int
    attention : {None, "bahdanau", "luong"}
        How the decoder reads the encoder's steps besides.  ``"bahdanau"``: the last output h(u-1)
        asks, and what it reads is part of the input of step u (Bahdanau, Cho, Bengio 2014).
        ``"luong"``: the output h(u) asks, and tanh([context; h(u)] W_c + b_c) takes its place
        before the read-out (Luong, Pham, Manning 2015, global attention, "general").
    go : int
        The target symbol that the decoder reads first.
    eos : int or None
        The target symbol that ends a target.  With None targets have no end: answers are
        `max_length` long.
    reverse : bool
        Whether the source is read backwards.
    teacher_forcing : float or callable
        The probability, in training, of reading the right symbol and not the one that the model
        itself found most probable; drawn for each symbol (scheduled sampling, Bengio et al. 2015).
        A callable is given the number of training passes it was asked before, which is kept as the
        parameter ``passes`` that nothing trains; passes that record nothing do not count.  In
        evaluation it is 1.
    max_length : int
        The greatest number of symbols of a target and of an answer.
    dtype : dtype
    rng : int or numpy.random.Generator, optional

    Raises
    ------
    ValueError, TypeError
        If there is no start symbol, a symbol is not in the vocabulary, a probability not in
        [0, 1], a size below 1, or `layer` makes no time-major recurrent layer of one direction
        and size H.

    Examples
    --------
    >>> model = EncoderDecoder(10, 12, hidden_size=8, rng=0)
    >>> source, target = [[3, 4, 5], [6]], [[2, 2, 7, 9], [11, 3]]
    >>> model(source, target).shape  # four symbols and <eos>
    (5, 2, 12)
    >>> round(model.loss(source, target).item(), 2)  # untrained: near ln V = 2.48
    2.33
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        hidden_size: int,
        *,
        embedding_size: int | None = None,
        layer: Callable[..., Recurrent] = LSTM,
        num_layers: int = 1,
        attention: str | None = None,
        go: int | None = 0,
        eos: int | None = 1,
        reverse: bool = True,
        teacher_forcing: float | Callable[[int], float] = 1.0,
        max_length: int = 100,
        dtype: npt.DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        D = hidden_size if embedding_size is None else embedding_size
        check_sizes(
            "EncoderDecoder", source_size=source_size, target_size=target_size,
            hidden_size=hidden_size, embedding_size=D, num_layers=num_layers,
            max_length=max_length,
        )  # fmt: skip
        self.go, self.eos = symbols.check(go, eos, target_size)
        if attention not in (None, *ATTENTIONS):
            raise ValueError(
                f"EncoderDecoder: attention is None, {' or '.join(map(repr, ATTENTIONS))}, "
                f"got {attention!r}"
            )
        dtype = floating("EncoderDecoder", dtype)
        self.source_size, self.target_size, self.max_length = source_size, target_size, max_length
        self.reverse = reverse
        self.rng = rng = np.random.default_rng(rng)
        settings = {"dtype": dtype, "rng": rng}
        if not callable(layer):
            raise TypeError(f"EncoderDecoder: layer={layer!r}: pass what makes one, as nn.LSTM")
        self.source_embedding = Embedding(source_size, D, **settings)
        self.target_embedding = Embedding(target_size, D, **settings)
        self.feeds = attention == "bahdanau"  # whether what was read is part of the input
        self.encoder = layer(D, hidden_size, num_layers, **settings)
        self.decoder = layer(D + hidden_size * self.feeds, hidden_size, num_layers, **settings)
        for made in (self.encoder, self.decoder):
            _check_layer(made, hidden_size)
        self.attention = self.combine = None
        if attention is not None:
            self.attention = ATTENTIONS[attention](hidden_size, **settings)
        if attention == "luong":
            self.combine = Linear(2 * hidden_size, hidden_size, **settings)
        self.linear = Linear(hidden_size, target_size, **settings)
        self.teacher_forcing = teacher_forcing
        self.passes = Parameter(np.zeros((), dtype))  # a checkpoint holds it as well
        self.passes.requires_grad = False
        if not callable(teacher_forcing):
            check_rates("EncoderDecoder", "teacher_forcing", teacher_forcing)

    # --- training

    def forward(
        self,
        source: Any,
        target: Any,
        *,
        source_lengths: Any = None,
        target_lengths: Any = None,
        alignment: bool = False,
    ) -> Any:
        """Return the logits of each symbol of the target, given the source and those before it.

        Parameters
        ----------
        source : array_like of int (T, N), or list of N sequences
        target : array_like of int (U, N), or list of N sequences
        source_lengths, target_lengths : array_like of int (N,), optional
        alignment : bool
            Whether to return the weights of the attention too.

        Returns
        -------
        logits : Tensor (U + 1, N, V), or (U, N, V) with ``eos=None``
            Their targets are ``labels(target)``.
        weights : Tensor (U + 1, N, T)
            Only with ``alignment=True``: how much of each source symbol was read for each
            target symbol, in the order of the source.

        Raises
        ------
        ShapeError, DtypeError
            For a source, a target or lengths of another shape or type, an empty target, or one
            longer than `max_length`.
        ValueError
            For symbols outside the vocabulary, and for ``<go>`` or ``<eos>`` in a target.
        """
        if alignment and self.attention is None:
            raise ValueError(f"{self._who}: alignment=True needs attention='bahdanau' or 'luong'")
        ids, order, lengths = self._read_source(source, source_lengths)
        inputs, _, _ = self._shift(target, target_lengths)
        logits, weights = self._translate(ids, lengths, inputs)
        if not alignment:
            return logits
        return logits, weights[:, np.arange(ids.shape[1])[:, None], order.T]

    def labels(self, target: Any, target_lengths: Any = None) -> tuple[Array, Array | None]:
        """Return what the logits are compared with, (U + 1, N), and which of it counts, or None.

        >>> model = EncoderDecoder(10, 12, hidden_size=8, rng=0)
        >>> labels, mask = model.labels([[5, 6, 7], [8]])
        >>> labels.T
        array([[5, 6, 7, 1],
               [8, 1, 0, 0]])
        >>> mask.T
        array([[ True,  True,  True,  True],
               [ True,  True, False, False]])
        """
        _, labels, mask = self._shift(target, target_lengths)
        return labels, mask

    def loss(
        self,
        source: Any,
        target: Any,
        *,
        source_lengths: Any = None,
        target_lengths: Any = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the cross-entropy of the target, ``<eos>`` included, in nats.

        Its mean is over the symbols that count.  Arguments as of ``forward`` and
        ``cross_entropy``.  So that ``train.evaluate``, and ``fit`` with a validation, weigh
        batches of lists by their symbols, each with its ``<eos>``, pass
        ``items=lambda batch: sum(len(target) + 1 for target in batch[1])``.
        """
        ids, _, lengths = self._read_source(source, source_lengths)
        inputs, labels, mask = self._shift(target, target_lengths)
        logits, _ = self._translate(ids, lengths, inputs)
        loss: Tensor = cross_entropy(logits, labels, mask=mask, reduction=reduction)
        return loss

    # --- decoding

    def greedy(self, source: Any, *, source_lengths: Any = None) -> list[Array]:
        """Return an answer for each source: the most probable symbol at every step.

        Returns
        -------
        list of N arrays of int
            Without ``<go>``, which is never written, and ``<eos>``; `max_length` symbols at most.

        Examples
        --------
        >>> model = EncoderDecoder(10, 12, hidden_size=8, max_length=4, rng=0)
        >>> [len(answer) <= 4 for answer in model.greedy([[3, 4, 5], [6]])]
        [True, True]
        """
        return self._answer(decoding.greedy, source, source_lengths)

    def sample(
        self,
        source: Any,
        *,
        source_lengths: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        nucleus: float = 1.0,
        rng: Any = None,
    ) -> list[Array]:
        """Return an answer for each source, drawn symbol by symbol; see ``decoding.sample``."""
        return self._answer(
            decoding.sample, source, source_lengths,
            temperature=temperature, top_k=top_k, nucleus=nucleus, rng=rng,
        )  # fmt: skip

    def beam(
        self,
        source: Any,
        width: int = 5,
        *,
        source_lengths: Any = None,
        length_penalty: float = 0.0,
    ) -> list[Array]:
        """Return the best answer that a beam finds for each source; see ``decoding.beam``."""
        check_sizes("beam", width=width)
        return self._answer(
            decoding.beam, source, source_lengths, width,
            width=width, length_penalty=length_penalty,
        )  # fmt: skip

    def _answer(
        self, decode: Any, source: Any, lengths: Any, rows: int = 1, **settings: Any
    ) -> list[Array]:
        """Encode the sources and let `decode` write, with so many rows for each of them."""
        ids, _, lengths = self._read_source(source, lengths)
        with no_grad(), evaluating(self):
            state, memory = self._encode(ids, lengths, rows)

            def step(ids: Array, state: Any) -> tuple[Array, Any]:
                out, state, _ = self._decode(self.target_embedding(ids[None]), state, memory)
                return self._writable(self.linear(out)), state

            if decode is decoding.beam:
                settings["state_axis"] = _axis(state)
            start = np.full(ids.shape[1], self.go)
            steps = self.max_length + (self.eos is not None)
            found = decode(step, start, state, eos=self.eos, max_length=steps, **settings)
        return [hypothesis.ids[: self.max_length] for hypothesis in found]

    def _writable(self, logits: Tensor) -> Array:
        """Return the logits (N, V) of one step (1, N, V) without ``<go>``, never an answer."""
        a: Array = logits.data[0].copy()
        a[:, self.go] = -np.inf
        return a

    # --- the two halves

    def _translate(self, ids: Array, lengths: Array | None, inputs: Array) -> tuple[Tensor, Any]:
        """Return logits and weights for a source and what the decoder reads, if it is forced."""
        if inputs.shape[1] != ids.shape[1]:
            raise ShapeError(f"{self._who}: {ids.shape[1]} sources, but {inputs.shape[1]} targets")
        state, memory = self._encode(ids, lengths)
        p = self._probability()
        if p < 1:
            return self._decode_freely(inputs, p, state, memory)
        out, _, weights = self._decode(self.target_embedding(inputs), state, memory)
        return self.linear(out), weights

    def _encode(self, ids: Array, lengths: Array | None, rows: int = 1) -> tuple[Any, Any]:
        """Return the state that the decoder starts from, and what attention reads, `rows` times."""
        out, state = self.encoder(self.source_embedding(ids), lengths=lengths)
        if self.attention is None:
            return state, None
        N = ids.shape[1]
        if self.feeds:  # the first to ask is the last output
            last = out[-1] if lengths is None else out[np.maximum(lengths, 1) - 1, np.arange(N)]
            state = state, last if _axis(state) == 0 else last.reshape(1, *last.shape)
        if rows > 1:
            out = Tensor(out.data.repeat(rows, 1))
            lengths = None if lengths is None else lengths.repeat(rows)
        return state, self.attention.prepare(out, lengths=lengths)

    def _decode(self, x: Tensor, state: Any, memory: Memory | None) -> tuple[Tensor, Any, Any]:
        """Return the outputs (U, N, H) for inputs (U, N, D), the state, and weights (U, N, T)."""
        if memory is None:
            out, state = self.decoder(x, state)
            return out, state, None
        assert self.attention is not None
        if self.combine is not None:
            h, state = self.decoder(x, state)
            context, weights = self.attention.attend(h, memory)
            return tanh(self.combine(ops.concat(context, h, axis=-1))), state, weights
        outs, reads = [], []
        state, query = state
        bare = query.ndim == 2
        for u in range(x.shape[0]):
            asking = query.reshape(1, *query.shape) if bare else query
            context, weights = self.attention.attend(asking, memory)
            out, state = self.decoder(ops.concat(x[u : u + 1], context, axis=-1), state)
            query = out[0] if bare else out
            outs.append(out)
            reads.append(weights)
        if len(outs) > 1:
            return ops.concat(*outs), (state, query), ops.concat(*reads)
        return outs[0], (state, query), reads[0]

    def _decode_freely(
        self, inputs: Array, p: float, state: Any, memory: Memory | None
    ) -> tuple[Tensor, Any]:
        """Return logits and weights where each symbol read is the right one with probability p."""
        right = self.rng.random(inputs.shape) < p
        logits, reads = [], []
        ids = inputs[0]
        for u in range(len(inputs)):
            out, state, weights = self._decode(self.target_embedding(ids[None]), state, memory)
            logits.append(self.linear(out))
            reads.append(weights)
            if u + 1 < len(inputs):
                own = self._writable(logits[-1]).argmax(1)
                ids = np.where(right[u + 1], inputs[u + 1], own)
        return ops.concat(*logits), None if memory is None else ops.concat(*reads)

    def _probability(self) -> float:
        """Return the probability of teacher forcing in this pass."""
        if not self.training:
            return 1.0
        if not callable(self.teacher_forcing):
            return self.teacher_forcing
        passes = int(self.passes.item())
        p = self.teacher_forcing(passes)
        check_rates("EncoderDecoder", f"teacher_forcing({passes})", p)
        if scope().mode != NEVER:
            self.passes.data = np.asarray(self.passes.data + 1)
        return p

    # --- reading what was given

    @property
    def _who(self) -> str:
        return self.path or "EncoderDecoder"

    def _read_source(self, source: Any, lengths: Any) -> tuple[Array, Array, Array | None]:
        """Return the source as it is read, where each symbol of it stands there, and lengths."""
        ids, lengths = symbols.read(self._who, "source", source, lengths, self.source_size)
        order = symbols.order(ids, lengths, self.reverse)
        return np.take_along_axis(ids, order, 0), order, lengths

    def _shift(self, target: Any, lengths: Any) -> tuple[Array, Array, Array | None]:
        """Return what the decoder reads, what it is asked for, and which of that counts."""
        ids, lengths = symbols.read(self._who, "target", target, lengths, self.target_size)
        longest = len(ids) if lengths is None else int(lengths.max())
        if longest > self.max_length:
            raise ShapeError(
                f"{self._who}: a target has {longest} symbols, more than max_length="
                f"{self.max_length}"
            )
        return symbols.shift(self._who, ids, lengths, self.go, self.eos)


def _axis(state: Any) -> int:
    """Return which axis of a state counts the sequences: stacked ones begin with the layers."""
    first: Tensor = first_of(state)
    return first.ndim - 2


def _check_layer(layer: Any, hidden_size: int) -> None:
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"EncoderDecoder: layer made {type(layer).__name__}, expected a recurrent layer"
        )
    if layer.num_directions != 1:
        raise ValueError(
            "EncoderDecoder: layer made one of two directions: a decoder cannot read backwards "
            "what it has not written"
        )
    if layer.batch_first:
        raise ValueError("EncoderDecoder: layer made one with batch_first=True, expected (T, N, D)")
    if layer.output_size != hidden_size:
        raise ValueError(
            f"EncoderDecoder: layer made one of size {layer.output_size}, expected "
            f"hidden_size={hidden_size}"
        )
