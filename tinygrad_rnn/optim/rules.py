"""The optimizers: each is the numbers of a step and the update of a flat piece."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from .base import Optimizer, Params
from .schedules import Schedule


class SGD(Optimizer):
    """Stochastic gradient descent, with (Nesterov) momentum as an option.

    With lambda the weight decay and mu the momentum, u = 0 at first::

        g = g + lambda * theta
        u = mu * u + g
        theta = theta - eta * u               with nesterov: eta * (g + mu * u)

    H. Robbins and S. Monro, "A Stochastic Approximation Method", 1951; B. Polyak, "Some methods of
    speeding up the convergence of iteration methods", 1964; nesterov as in I. Sutskever et al., "On
    the importance of initialization and momentum in deep learning", 2013.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.array([1.0, -2.0]))
    >>> optimizer = SGD([w], lr=0.1, momentum=0.5)
    >>> for _ in range(2):
    ...     w.grad = np.array([2.0, -4.0])
    ...     optimizer.step()  # u = g, then u = 1.5 g
    >>> w.data
    array([ 0.5, -1. ])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Schedule,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, lr=lr, **settings)

    def _coefficients(self, s: Mapping[str, Any], lr: float, t: int) -> tuple[float, ...]:
        return lr, s["momentum"], s["nesterov"]

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        mu, nesterov = k
        for u in slots:  # one, or none without momentum
            np.add(np.multiply(u, mu, u), g, u)
            g = np.add(np.multiply(u, mu, tmp), g, tmp) if nesterov else u
        return g


class Adagrad(Optimizer):
    """Adagrad: the steps of a weight shrink with the gradients it has seen.

    With lambda the weight decay, s = 0 at first::

        g = g + lambda * theta
        s = s + g^2
        theta = theta - eta * g / (sqrt(s) + eps)

    J. Duchi, E. Hazan and Y. Singer, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization", 2011.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.array([1.0, -2.0]))
    >>> optimizer = Adagrad([w], lr=0.5)
    >>> for g in ([3.0, 3.0], [4.0, 0.0]):  # s = (9, 9), then (25, 9)
    ...     w.grad = np.array(g)
    ...     optimizer.step()
    >>> w.data
    array([ 0.1, -2.5])
    """

    _kept = ("s",)

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-2,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def _coefficients(self, s: Mapping[str, Any], lr: float, t: int) -> tuple[float, ...]:
        return lr, s["eps"]

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        (s,), (eps,) = slots, k
        np.add(s, np.square(g, tmp), s)
        return _ratio(g, s, eps, tmp)


class RMSprop(Optimizer):
    """RMSprop: gradients divided by a running root mean square, with momentum as an option.

    With lambda the weight decay and mu the momentum, v = u = 0 at first::

        g = g + lambda * theta
        v = alpha * v + (1 - alpha) * g^2
        u = mu * u + g / (sqrt(v) + eps)      eps outside the root, as in PyTorch
        theta = theta - eta * u

    T. Tieleman and G. Hinton, "Lecture 6.5 - rmsprop", Neural Networks for Machine Learning, 2012.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.array([1.0, -2.0]))
    >>> optimizer = RMSprop([w], lr=0.1, alpha=0.75)
    >>> w.grad = np.array([3.0, -8.0])
    >>> optimizer.step()  # sqrt(v) = |g| / 2
    >>> w.data.round(4)
    array([ 0.8, -1.8])
    """

    _kept = ("v",)

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, lr=lr, alpha=alpha, **settings)

    def _coefficients(self, s: Mapping[str, Any], lr: float, t: int) -> tuple[float, ...]:
        return lr, s["alpha"], 1 - s["alpha"], s["eps"], s["momentum"]

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        (v, *momentum), (alpha, new, eps, mu) = slots, k
        _average(v, alpha, np.square(g, tmp), new, tmp)
        d = _ratio(g, v, eps, tmp)
        for u in momentum:  # one, or none
            d = np.add(np.multiply(u, mu, u), tmp, u)
        return d


class Adam(Optimizer):
    """Adam: running means of the gradient and of its square, both freed of their bias to zero.

    With lambda the weight decay and betas = (b1, b2), m = v = 0 at first::

        g = g + lambda * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g^2
        theta = theta - eta * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.  What is
    kept are the sums m / (1 - b1) and v / (1 - b2): the factors go into the numbers of a step,
    which saves two of its twelve passes.  Start a new optimizer to change the betas.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.array([1.0, -2.0]))
    >>> optimizer = Adam([w], lr=0.1)
    >>> w.grad = np.array([3.0, -0.01])
    >>> optimizer.step()  # the first step is eta * sign(g)
    >>> w.data.round(4)
    array([ 0.9, -1.9])
    """

    _kept = ("m", "v")

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _coefficients(self, s: Mapping[str, Any], lr: float, t: int) -> tuple[float, ...]:
        b1, b2 = s["betas"]
        root = math.sqrt((1 - b2**t) / (1 - b2))  # extends the fraction
        return lr * root * (1 - b1) / (1 - b1**t), b1, b2, s["eps"] * root

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        (m, v), (b1, b2, eps) = slots, k
        np.add(np.multiply(m, b1, m), g, m)
        np.add(np.multiply(v, b2, v), np.square(g, tmp), v)
        return _ratio(m, v, eps, tmp)


class AdamW(Adam):
    """Adam with decoupled weight decay, which no gradient scale changes.

    With lambda the weight decay, `Adam` without it runs after::

        theta = theta - eta * lambda * theta

    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019; the decay is scaled
    by the learning rate, as in PyTorch.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.array([1.0, -2.0]))
    >>> optimizer = AdamW([w], lr=0.1, weight_decay=0.5)
    >>> w.grad = np.array([3.0, 0.0])
    >>> optimizer.step()  # 0.95 theta, then the step of Adam
    >>> w.data.round(4)
    array([ 0.85, -1.9 ])
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float | Schedule = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)


def _average(mean: Array, keep: Array, x: Array, new: Array, tmp: Array) -> None:
    """Set mean to keep * mean + new * x; x may be tmp."""
    np.multiply(x, new, tmp)
    np.add(np.multiply(mean, keep, mean), tmp, mean)


def _ratio(d: Array, square: Array, eps: Array, tmp: Array) -> Array:
    """Return d / (sqrt(square) + eps), in tmp."""
    np.sqrt(square, tmp)
    return np.divide(d, np.add(tmp, eps, tmp), tmp)
