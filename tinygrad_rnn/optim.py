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

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import DtypeError, ShapeError, StateError
from .tensor import Parameter

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

Array: TypeAlias = NDArray[Any]
Schedule: TypeAlias = Callable[[int], float]
"""A learning rate as a function of the number of steps already taken: 0, 1, 2, ..."""
Params: TypeAlias = Iterable[Parameter] | Iterable[Mapping[str, Any]]

# Elements that are updated together, so that the passes of an update find parameter, gradient and
# state in the cache: 65536 float32 are 256 KiB. Measured for Adam and 1M float32 parameters:
# 4096 -> 2.9 ms, 16384 -> 2.4 ms, 32768 -> 2.3 ms, 65536 -> 2.2 ms, 131072 -> 2.3 ms.
_CHUNK = 65536


class _State:
    """What the updates of one parameter have accumulated."""

    def __init__(self) -> None:
        self.count = 0
        self.arrays: dict[str, Array] = {}


class Optimizer:
    """What all optimizers share: groups, state, checks and the walk over the parameters.

    Parameters
    ----------
    params : iterable of Parameter, or list of dict
        The parameters; or groups, each a dict with ``"params"`` and settings of its own that
        replace those of the constructor, such as ``{"params": [b], "weight_decay": 0.0}``.
    **settings
        The settings of the optimizer, ``lr`` among them: a number or a schedule.

    Attributes
    ----------
    groups : list of dict
        For each group ``"params"`` (a tuple, fixed) and every setting. Settings may be changed
        between steps: ``optimizer.groups[0]["lr"] = 1e-4``.
    steps : int
        The number of steps taken.

    Raises
    ------
    TypeError
        Something in `params` is not a `Parameter`, or a setting is not a number.
    ValueError
        No parameters, a parameter given twice, an unknown setting or one out of its range.
    """

    # A subclass names the arrays it keeps, gives the numbers of a step and writes the update of
    # flat pieces. An array "momentum" is kept besides while there is a setting of that name.
    _kept: tuple[str, ...] = ()
    _decoupled = False  # weight decay shrinks the parameter instead of joining the gradient

    def __init__(self, params: Params, **settings: Any) -> None:
        self._names, self.steps = tuple(settings), 0
        self.groups: list[dict[str, Any]] = []
        for entry in _entries(params):
            own = dict(entry)
            if "params" not in own:
                raise ValueError(f"group {len(self.groups)} has no 'params'")
            members = tuple(_parameters(own.pop("params")))
            self.groups.append({"params": members, **settings, **own})
        everything = _parameters(p for group in self.groups for p in group["params"])
        self._states = [_State() for _ in everything]
        self._scratch: dict[np.dtype[Any], Array] = {}
        self._check_groups()

    def _coefficients(self, s: Mapping[str, Any], lr: float, t: int) -> tuple[float, ...]:
        """Return the numbers of update t under the settings s; the first scales the direction."""
        raise NotImplementedError

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        """Update the slots in place, return what to subtract but for its scale (tmp or a slot).

        k holds the other numbers of `_coefficients`, in the parameter's dtype.
        """
        raise NotImplementedError

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rate of the next step, for each group."""
        rates = ((g["lr"](self.steps) if callable(g["lr"]) else g["lr"]) for g in self.groups)
        return tuple(_number("lr", rate) for rate in rates)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, of the first group."""
        return self.lrs[0]

    def zero_grad(self) -> None:
        """Forget the gradients: ``.grad`` of every parameter becomes None."""
        for _, p, _ in self._members():
            p.grad = None

    def step(self) -> None:
        """Update every parameter once, in place.

        A parameter without a gradient, or with ``requires_grad`` False, is skipped: it and its
        state stay as they are. Everything is checked before the first parameter changes.

        Raises
        ------
        ValueError
            The array of a parameter is read-only, or a setting is out of its range.
        ShapeError, DtypeError
            Gradient or state do not fit the parameter, say after ``Module.astype``.
        """
        self._check_groups()
        rates = self.lrs
        work = [
            (i, p.data, grad, state, _check_fit(p, grad, self._slots(i, p, state)))
            for i, p, state in self._members()
            if (grad := p.grad) is not None and p.requires_grad
        ]
        constants: dict[tuple[int, np.dtype[Any], int], list[Array]] = {}
        for i, data, grad, state, slots in work:
            state.count += 1
            key = i, data.dtype, state.count
            if key not in constants:
                s = self.groups[i]
                decay = 1 - rates[i] * s["weight_decay"] if self._decoupled else s["weight_decay"]
                numbers = (decay, *self._coefficients(s, rates[i], state.count))
                constants[key] = [np.array(x, data.dtype) for x in numbers]  # faster than floats
            self._update(data, grad, slots, *constants[key])
        self.steps += 1

    def _update(
        self, data: Array, grad: Array, slots: list[Array], decay: Array, rate: Array, *k: Array
    ) -> None:
        """Update one parameter, piece by piece."""
        if data.dtype not in self._scratch:
            self._scratch[data.dtype] = np.empty((2, _CHUNK), data.dtype)
        p, g = data.reshape(-1), grad.reshape(-1)  # views where the arrays are contiguous
        flat = [a.reshape(-1) for a in slots]
        for start in range(0, p.size, _CHUNK):
            piece = slice(start, start + _CHUNK)
            x, d = p[piece], g[piece]
            tmp, decayed = self._scratch[data.dtype][:, : x.size]
            if self._decoupled:
                np.multiply(x, decay, x)
            elif decay:
                np.multiply(x, decay, decayed)
                d = np.add(decayed, d, decayed)
            d = self._direction(d, [a[piece] for a in flat], tmp, k)
            np.subtract(x, np.multiply(d, rate, tmp), x)
        if not data.flags.c_contiguous:  # p is a copy
            data[...] = p.reshape(data.shape)

    def state_dict(self) -> dict[str, Array]:
        """Return what the steps have accumulated: a flat dict of copies, ready for ``np.savez``.

        ``"kind"`` is the name of the class and ``"steps"`` the number of steps. For parameter i,
        counted through all groups, ``"i.count"`` is the number of its updates, and the others,
        such as ``"i.m"``, are arrays of its shape and dtype. Settings and schedules are code and
        not in it: whoever loads it builds the optimizer as it was, or otherwise on purpose.
        """
        table = {"kind": np.array(type(self).__name__), "steps": np.array(self.steps)}
        for n, (i, p, state) in enumerate(self._members()):
            self._slots(i, p, state)
            table[f"{n}.count"] = np.array(state.count)
            table |= {f"{n}.{name}": array.copy() for name, array in state.arrays.items()}
        return table

    def load_state_dict(self, table: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; to go on is then as not to have stopped.

        Raises
        ------
        StateError
            The kind of optimizer, a name, a shape or a dtype differs; nothing has changed then.
        """
        left = {name: np.asarray(value) for name, value in table.items()}
        kind, states = type(self).__name__, []
        possible = self._kept + (("momentum",) if "momentum" in self._names else ())
        if str(left.pop("kind", None)) != kind:
            raise StateError(f"'kind': expected {kind!r}, got {table.get('kind')!r}")
        steps = int(_pop(left, "steps"))
        for n, (i, p, _) in enumerate(self._members()):
            state = _State()
            state.count = int(_pop(left, f"{n}.count"))
            for name in possible:
                if name in self._slot_names(i) or f"{n}.{name}" in left:
                    state.arrays[name] = _pop(left, f"{n}.{name}", p.data).copy()
            states.append(state)
        if left:
            raise StateError(f"{next(iter(left))!r}: not in the state of this {kind}")
        self.steps, self._states = steps, states

    def _members(self) -> Iterator[tuple[int, Parameter, _State]]:
        """Walk over (group number, parameter, state)."""
        members = [(i, p) for i, group in enumerate(self.groups) for p in group["params"]]
        if len(members) != len(self._states):
            raise ValueError("the parameters of an optimizer are fixed: make a new one")
        return ((i, p, state) for (i, p), state in zip(members, self._states, strict=True))

    def _slot_names(self, i: int) -> tuple[str, ...]:
        return self._kept + (("momentum",) if self.groups[i].get("momentum") else ())

    def _slots(self, i: int, p: Parameter, state: _State) -> list[Array]:
        """Return the arrays that the settings of group i need, zeros where there were none."""
        names = self._slot_names(i)
        for name in names:
            if name not in state.arrays:
                state.arrays[name] = np.zeros(p.data.shape, p.data.dtype)
        return [state.arrays[name] for name in names]

    def _check_groups(self) -> None:
        """Check the names and values of all settings: they may change between steps."""
        for i, group in enumerate(self.groups):
            for name in group:
                if name not in ("params", *self._names):
                    takes = f"{type(self).__name__} takes {', '.join(self._names)}"
                    raise ValueError(f"group {i}: unknown setting {name!r}; {takes}")
            for name in self._names:
                _check_setting(f"group {i}: {name}", group[name], name)
            if group.get("nesterov") and not group["momentum"]:
                raise ValueError(f"group {i}: nesterov needs a momentum above 0")


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

    D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.

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
        root = math.sqrt(1 - b2**t)  # extends the fraction: the corrections become two numbers
        return lr * root / (1 - b1**t), b1, 1 - b1, b2, 1 - b2, s["eps"] * root

    def _direction(self, g: Array, slots: Sequence[Array], tmp: Array, k: Sequence[Array]) -> Array:
        (m, v), (b1, new1, b2, new2, eps) = slots, k
        _average(m, b1, g, new1, tmp)
        _average(v, b2, np.square(g, tmp), new2, tmp)
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


def constant(lr: float) -> Schedule:
    """Return the schedule eta(k) = lr.

    >>> constant(0.1)(1000)
    0.1
    """
    return lambda step: lr


def step_decay(lr: float, every: int, factor: float) -> Schedule:
    """Return the schedule eta(k) = lr * factor^floor(k / every).

    >>> [step_decay(1.0, every=2, factor=0.5)(k) for k in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    _at_least_one("every", every)
    return lambda step: lr * factor ** (step // every)


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """Return eta(k) = final + (lr - final) * (1 + cos(pi * k / steps)) / 2, then final for good.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    equation (5), without restarts.

    >>> [round(cosine(1.0, steps=4)(k), 3) for k in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    _at_least_one("steps", steps)

    def eta(step: int) -> float:
        return final + (lr - final) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2

    return eta


def warmup(schedule: float | Schedule, steps: int) -> Schedule:
    """Return eta(k) = schedule(k) * min(1, (k + 1) / steps): the first steps rise linearly.

    >>> [warmup(1.0, steps=4)(k) for k in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    _at_least_one("steps", steps)
    base = schedule if callable(schedule) else constant(schedule)
    return lambda step: base(step) * min(1.0, (step + 1) / steps)


def clip_grad_norm(params: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients by one factor so that their common 2-norm is at most `max_norm`.

    g = g * min(1, max_norm / norm), norm = sqrt(sum over all elements of all g of g^2), computed
    in float64 and without overflow. Skips what `Optimizer.step` skips. Clipped gradients are new
    arrays in ``.grad``, since several parameters may share one. If the norm is not finite, the
    gradients stay as they are.

    Returns
    -------
    float
        The norm before clipping; infinite or NaN if an element is.

    References
    ----------
    R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
    networks", 2013, algorithm 1.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.zeros(2))
    >>> w.grad = np.array([3.0, -4.0])
    >>> clip_grad_norm([w], max_norm=1.0), w.grad
    (5.0, array([ 0.6, -0.8]))
    """
    limit = _positive("max_norm", max_norm)
    grads = _gradients(params)
    peak = float(np.max([np.abs(g).max(initial=0) for _, g in grads], initial=0))
    unit = 2.0 ** (math.frexp(peak)[1] - 1)  # a power of two: to divide by it is exact
    scaled = (np.divide(g, unit, dtype=np.float64).reshape(-1) for _, g in grads)
    norm = unit * math.sqrt(sum(float(x @ x) for x in scaled))
    if limit < norm < math.inf:
        for p, g in grads:
            p.grad = np.multiply(g, limit / norm, dtype=np.float64).astype(g.dtype)
    return norm


def clip_grad_value(params: Iterable[Parameter], limit: float) -> None:
    """Clip every element of every gradient to [-limit, limit]; NaN stays NaN.

    Skips what `Optimizer.step` skips; clipped gradients are new arrays in ``.grad``.

    >>> import numpy as np
    >>> from tinygrad_rnn.tensor import Parameter
    >>> w = Parameter(np.zeros(2))
    >>> w.grad = np.array([3.0, -0.5])
    >>> clip_grad_value([w], 1.0)
    >>> w.grad
    array([ 1. , -0.5])
    """
    bound = _positive("limit", limit)
    for p, g in _gradients(params):
        most = min(bound, float(np.finfo(g.dtype).max))
        p.grad = np.clip(g, -most, most)


def _label(p: Parameter) -> str:
    return f"parameter {p.name!r} {p.data.dtype} {p.data.shape}"


def _entries(params: Any) -> list[Mapping[str, Any]]:
    """Return groups; bare parameters are one group."""
    if isinstance(params, Iterable) and not isinstance(params, Parameter | Mapping):
        params = list(params)
        groups = [entry for entry in params if isinstance(entry, Mapping)]
        if groups and len(groups) == len(params):
            return groups
    return [{"params": params}]


def _parameters(params: Any) -> list[Parameter]:
    """Return the parameters as a list, each once."""
    if isinstance(params, Parameter | Mapping) or not isinstance(params, Iterable):
        raise TypeError(f"params: expected an iterable of Parameters, got {type(params).__name__}")
    found, seen = list(params), set()
    if not found:
        raise ValueError("params: no parameters")
    for i, p in enumerate(found):
        if not isinstance(p, Parameter):
            raise TypeError(f"params: expected Parameters, item {i} is a {type(p).__name__}")
        if p.data.dtype.kind != "f":
            raise DtypeError(f"params: {_label(p)} is not real")
        if id(p) in seen:
            raise ValueError(f"params: {_label(p)} is given twice")
        seen.add(id(p))
    return found


def _gradients(params: Iterable[Parameter]) -> list[tuple[Parameter, Array]]:
    return [(p, p.grad) for p in _parameters(params) if p.requires_grad and p.grad is not None]


def _check_fit(p: Parameter, grad: Array, slots: list[Array]) -> list[Array]:
    """Return the slots; raise where gradient or state do not fit, or p cannot be written."""
    for what, a in (("gradient", grad), *(("state of the optimizer", a) for a in slots)):
        if a.shape != p.data.shape:
            raise ShapeError(f"{_label(p)}: the {what} has shape {a.shape}")
        if a.dtype != p.data.dtype:
            advice = "convert a model before its optimizer is made"
            raise DtypeError(f"{_label(p)}: the {what} is {a.dtype}; {advice}")
    if not p.data.flags.writeable:
        raise ValueError(f"{_label(p)}: its array is read-only and cannot be updated in place")
    return slots


def _check_setting(label: str, value: Any, name: str) -> None:
    if name == "nesterov":
        if not isinstance(value, bool):
            raise TypeError(f"{label}: expected True or False, got {value!r}")
    elif name == "betas":
        if not isinstance(value, Sequence) or len(value) != 2:
            raise TypeError(f"{label}: expected two numbers, got {value!r}")
        for beta in value:
            _number(label, beta, below=1)
    elif not (name == "lr" and callable(value)):
        _number(label, value, below=1 if name == "alpha" else math.inf)


def _number(label: str, value: Any, below: float = math.inf) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{label}: expected a number, got {value!r}")
    if not 0 <= float(value) < below:
        raise ValueError(f"{label}: expected a number in [0, {below}), got {value!r}")
    return float(value)


def _positive(label: str, value: Any) -> float:
    if not isinstance(value, Real) or not float(value) > 0:
        raise ValueError(f"{label}: expected a number above 0, got {value!r}")
    return float(value)


def _at_least_one(label: str, value: Any) -> None:
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{label}: expected a whole number of steps, at least 1, got {value!r}")


def _pop(table: dict[str, Array], key: str, like: Array | None = None) -> Array:
    """Take a count, or an array like another, out of a state."""
    if key not in table:
        raise StateError(f"{key!r}: missing from the state")
    value = table.pop(key)
    if like is None:
        if value.shape != () or value.dtype.kind not in "iu" or value < 0:
            raise StateError(f"{key!r}: expected a count, got {value!r}")
    elif value.shape != like.shape or value.dtype != like.dtype:
        expected = f"{like.dtype} {like.shape}"
        raise StateError(f"{key!r}: expected {expected}, got {value.dtype} {value.shape}")
    return value
