"""Our side of every measurement: the only module here that knows tinygrad_rnn."""

from typing import Any

import numpy as np

from tinygrad_rnn import nn, no_grad

from .problem import Array, Pick, Problem, Run, Sampler


def layer(problem: Problem) -> tuple[Any, list[Any]]:
    """Build `nn.LSTM` with the problem's weights; return it with the parameters W_x, W_h, b."""
    made = nn.LSTM(problem.W_x.shape[0], problem.W_h.shape[0])
    named = dict(made.named_parameters())
    parameters = [named[f"L0.fwd.{name}"] for name in ("W_x", "W_h", "b")]
    for parameter, value in zip(parameters, problem.weights, strict=True):
        parameter.data[...] = value
    return made, parameters


def lstm(problem: Problem) -> Run:
    """Forward and backward of the layer, a fresh graph each time."""
    made, parameters = layer(problem)
    x = problem.x

    def run() -> list[Array]:
        for p in parameters:
            p.grad = None
        out, _ = made(x)
        out.sum().backward()
        return [p.grad for p in parameters]

    return run


def sampler(weights: dict[str, Array], pick: Pick, by: str = "layer") -> Sampler:
    """Embedding, LSTM, Linear, one character at a time; `pick(logits, n)` chooses the n-th."""
    V, D = weights["E"].shape
    H = weights["W_h"].shape[0]
    embedding, recurrent, linear = nn.Embedding(V, D), nn.LSTM(D, H), nn.Linear(H, V)
    named = {
        **{f"E.{k}": p for k, p in embedding.named_parameters()},
        **dict(recurrent.named_parameters()),
        **{f"V.{k}": p for k, p in linear.named_parameters()},
    }
    names = {"E": "E.W", "V": "V.W", "c": "V.b"} | {k: f"L0.fwd.{k}" for k in ("W_x", "W_h", "b")}
    for short, name in names.items():
        named[name].data[...] = weights[short]

    step = recurrent.L0["fwd"] if by == "cell" else recurrent
    shape = (1,) if by == "cell" else (1, 1)

    def run(length: int) -> list[int]:
        text, char, state = [], 0, None
        with no_grad():
            for n in range(length):
                out, state = step(embedding(np.full(shape, char)), state)
                char = pick(linear(out).data.reshape(-1), n)
                text.append(char)
        return text

    return run
