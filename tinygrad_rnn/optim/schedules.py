"""Learning rates as functions of the number of steps already taken: 0, 1, 2, ...

Rates and factors are numbers from 0, lengths whole numbers from 1; others are refused at once.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeAlias

from .base import number

Schedule: TypeAlias = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """Return the schedule eta(k) = lr.

    >>> constant(0.1)(1000)
    0.1
    """
    number("lr", lr)
    return lambda step: lr


def step_decay(lr: float, every: int, factor: float) -> Schedule:
    """Return the schedule eta(k) = lr * factor^floor(k / every).

    >>> [step_decay(1.0, every=2, factor=0.5)(k) for k in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    number("lr", lr)
    number("factor", factor)
    _at_least_one("every", every)
    return lambda step: lr * factor ** (step // every)


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """Return eta(k) = final + (lr - final) * (1 + cos(pi * k / steps)) / 2, then final for good.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    equation (5), without restarts.

    >>> [round(cosine(1.0, steps=4)(k), 3) for k in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    number("lr", lr)
    number("final", final)
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


def _at_least_one(label: str, value: Any) -> None:
    if not isinstance(value, Integral) or int(value) < 1:
        raise ValueError(f"{label}: expected a whole number of steps, at least 1, got {value!r}")
