"""Optimizers, learning-rate schedules and gradient clipping.

An optimizer owns groups of parameters and their settings; `Optimizer.step` changes the parameters
in place from the gradients that ``backward()`` left in ``.grad``:

>>> import numpy as np
>>> from tinygrad_rnn.tensor import Parameter
>>> w = Parameter(np.array([1.0, -2.0]), name="w")
>>> optimizer = Adam([w], lr=cosine(0.1, steps=100))
>>> w.grad = np.array([3.0, 0.5])
>>> optimizer.step()
>>> w.data
array([ 0.9, -2.1])
>>> optimizer.zero_grad()

Update rules and defaults are those of PyTorch. In the equations g is the gradient, theta the
parameter, t = 1, 2, ... counts the updates of this parameter and eta is the learning rate.
"""

from .base import Optimizer
from .clipping import clip_grad_norm, clip_grad_value
from .rules import SGD, Adagrad, Adam, AdamW, RMSprop
from .schedules import Schedule, constant, cosine, step_decay, warmup

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "Schedule",
    "clip_grad_norm",
    "clip_grad_value",
    "constant",
    "cosine",
    "step_decay",
    "warmup",
]
