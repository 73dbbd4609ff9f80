"""What all optimizers share: groups, state, checks and the walk over the parameters."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from ..arrays import Array
from ..errors import DtypeError, ShapeError, StateError
from ..tensor import Parameter

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
            members = tuple(parameters_of(own.pop("params")))
            self.groups.append({"params": members, **settings, **own})
        everything = parameters_of(p for group in self.groups for p in group["params"])
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
        return tuple(number("lr", rate) for rate in rates)

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


def parameters_of(params: Any) -> list[Parameter]:
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
            number(label, beta, below=1)
    elif not (name == "lr" and callable(value)):
        number(label, value, below=1 if name == "alpha" else math.inf)


def number(label: str, value: Any, below: float = math.inf) -> float:
    """Return a number from 0 to below a bound."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{label}: expected a number, got {value!r}")
    if not 0 <= float(value) < below:
        raise ValueError(f"{label}: expected a number in [0, {below}), got {value!r}")
    return float(value)


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
