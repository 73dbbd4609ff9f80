"""The date model composed in PyTorch eager: embeddings, two unrolled LSTMs, a read-out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .dates import CLIP, RATE, Batch, H
from .peer_torch import Affine, step
from .peer_torch import addmm as fused
from .peer_torch import literal as plain
from .problem import Array


def literal(batch: Batch) -> Any:
    """The pre-activations as the equation has them."""
    return build(batch, plain)


def addmm(batch: Batch) -> Any:
    """The sums inside the matrix products."""
    return build(batch, fused)


def build(batch: Batch, affine: Affine) -> tuple[Callable[[], float], Callable[[], dict[str, Any]]]:
    """Return a training step, which returns its loss, and what reads the last gradients."""
    W = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in batch.weights.items()}
    adam = torch.optim.Adam(W.values(), RATE)
    T, N = batch.source.shape
    ends = np.full(N, T) if batch.lengths is None else batch.lengths
    order = np.arange(T)[:, None]
    order = np.where(order < ends, ends - 1 - order, order)
    valid = np.arange(T)[:, None] < ends
    inside = [None if v.all() else torch.tensor(v)[:, None] for v in valid]
    source = np.where(valid, np.take_along_axis(batch.source, order, 0), 0)
    bound = np.zeros((1, N), np.int64)
    reads = torch.tensor(np.concatenate([bound, batch.target]))
    labels = torch.tensor(np.concatenate([batch.target, bound + 1])).reshape(-1)
    ids = torch.tensor(source)

    def unroll(name: str, x: torch.Tensor, state: Any, masks: list[Any]) -> Any:
        P = [W[f"{name}.L0.fwd.{k}"] for k in ("W_x", "W_h", "b")]
        h, c = state
        outputs = []
        for x_t, mask in zip(x.unbind(0), masks, strict=True):
            new_h, new_c = step(affine(x_t, h, P), c)
            if mask is not None:
                new_h, new_c = torch.where(mask, new_h, h), torch.where(mask, new_c, c)
            h, c = new_h, new_c
            outputs.append(h)
        return torch.stack(outputs), (h, c)

    def run() -> float:
        adam.zero_grad()
        zero = torch.zeros(N, H)
        x = torch.nn.functional.embedding(ids, W["source_embedding.W"])
        _, state = unroll("encoder", x, (zero, zero), inside)
        y = torch.nn.functional.embedding(reads, W["target_embedding.W"])
        out, _ = unroll("decoder", y, state, [None] * len(reads))
        logits = (out @ W["linear.W"] + W["linear.b"]).reshape(-1, W["linear.b"].shape[0])
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(W.values(), CLIP)
        adam.step()
        return float(loss.detach())

    def gradients() -> dict[str, Array]:
        return {k: p.grad.numpy() for k, p in W.items() if p.grad is not None}

    return run, gradients
