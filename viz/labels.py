"""What is written at a node, in text that DOT takes as it is meant."""

from __future__ import annotations

import re
from typing import Any

import graphviz
import numpy as np

from tinygrad_rnn import Tensor
from tinygrad_rnn.op import Op

_SYMMETRIC = ("add", "mul", "maximum", "minimum", "equal", "not_equal")  # their inputs may swap
_SIGNS = {ord("*"): "×", ord("-"): "−"}
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def kind(t: Tensor) -> str:
    """Return the kind of a node, a key of the styles."""
    if t.op is not None:
        return "named" if t.name else "op"
    if t.requires_grad:
        return "parameter"
    if "detached" in t.attrs:
        return "detached"
    return "data" if t.name or t.shape else "constant"


def label(t: Tensor) -> Any:
    """Return ``c: +`` and the shape; a number says its value in the place of the shape."""
    head = ": ".join([s for s in (t.name, _operation(t.op, t.attrs) if t.op else "") if s])
    value = str(t.shape) if t.op or t.shape else _number(t.data.item())
    return text("\n".join([s for s in (head, value) if s]))


def _operation(op: Op, attrs: dict[str, Any]) -> str:
    """Return ``+`` for x + y, ``[0:3]`` for x[start:stop], else the op's name; and settings."""
    infix = re.fullmatch(r"x (\S+) y", op.formula)
    if infix:
        return infix[1].translate(_SIGNS)
    known = {k: _setting(v) for k, v in attrs.items() if v is not None and v is not False}
    known.pop("shape", None)  # the line below says it
    parts = re.split(r"(\w+)", op.formula)
    filled = "".join([known.get(part, part) for part in parts])
    name = op.name if filled == op.formula else filled.removeprefix("x")
    return " ".join([name, *[f"{k}={v}" for k, v in known.items() if k not in parts]])


def positions(t: Tensor) -> list[str | None]:
    """Return the number of each input where their order matters."""
    n = len(t.inputs)
    if t.op is None or n < 2 or t.op.name in _SYMMETRIC:
        return [None] * n
    return [str(k + 1) for k in range(n)]


def _setting(value: Any) -> str:
    """Return an attribute as it is written in code; nothing in it depends on the run."""
    if isinstance(value, slice):
        parts = ["" if i is None else str(i) for i in (value.start, value.stop, value.step)]
        return ":".join(parts if value.step is not None else parts[:2])
    if isinstance(value, tuple | list):
        listed = ", ".join([_setting(v) for v in value])
        return listed if len(listed) <= 30 else listed[:29] + "…"
    if value is Ellipsis:
        return "..."
    plain = value is None or isinstance(value, bool | int | float | str | np.dtype)
    return str(value) if plain else type(value).__name__


def _number(value: Any) -> str:
    return str(value) if isinstance(value, bool | int) else f"{value:.6g}"


def text(words: str) -> Any:
    """Return a label that shows `words` as they are: no escapes, entities or HTML in it."""
    words = _UNPRINTABLE.sub("\ufffd", words).replace("\\", "\\\\")
    words = re.sub(r"&(?=#?\w+;)", "&amp;", words)
    return graphviz.nohtml(words.replace("\n", "\\n"))


def unique(ids: dict[int, str]) -> dict[int, str]:
    """Return the ids without what DOT reads as syntax (a colon starts a port), each one once."""
    used: set[str] = set()
    safe = {}
    for node, name in ids.items():
        plain = clean = re.sub(r"[^\w.#]", "_", name)
        count = 1
        while clean in used:
            count += 1
            clean = f"{plain}_{count}"
        used.add(clean)
        safe[node] = clean
    return safe
