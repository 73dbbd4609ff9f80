"""Training loops: `fit` and `evaluate`, a `History`, checkpoints that continue bit by bit.

What a model is asked for is one function, ``loss(model, batch, state) -> (loss, state)``: the mean
loss of a batch, a scalar Tensor, and the state to carry to the next batch, or None:

>>> import numpy as np
>>> from tinygrad_rnn import data, nn, optim
>>> from tinygrad_rnn.functional import mse_loss
>>> def loss(model, batch, state):
...     x, y = batch
...     return mse_loss(model(x), y), None
>>> x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
>>> batches = data.batches(x, x @ np.float32([[1], [2], [3]]), batch_size=8, rng=0)
>>> model = nn.Linear(3, 1, rng=0)
>>> history = fit(model, batches, loss, optim.Adam(model.parameters(), lr=0.1), epochs=20)
>>> len(history.loss), round(evaluate(model, batches, loss), 2)
(160, 0.0)
"""

from __future__ import annotations

from .history import History, Step
from .loop import count_items, evaluate, fit

__all__ = ["History", "Step", "count_items", "evaluate", "fit"]
