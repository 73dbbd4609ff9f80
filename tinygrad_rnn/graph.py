"""Iterative walks over recorded nodes: of a node only ``inputs``, ``op`` and ``order`` count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def nodes(outputs: Iterable[Any], requiring: bool = False) -> list[Any]:
    """Return every node that `outputs` were made from, in the order of their creation.

    That order is a topological one: an op runs when its inputs exist.  With `requiring`, only
    nodes that require a gradient are visited.
    """
    seen = {t.order: t for t in outputs}
    stack = list(seen.values())
    while stack:
        for x in stack.pop().inputs:
            if x.order not in seen and (x.requires_grad or not requiring):
                seen[x.order] = x
                stack.append(x)
    return [seen[k] for k in sorted(seen)]


def reach(order: Iterable[Any], roots: Iterable[Any]) -> set[int]:
    """Return the ``order`` of `roots` and of the nodes through which they get a gradient.

    The nodes come in topological order; an input that its op has no rule for passes nothing on.
    """
    reached = {t.order for t in roots}
    for t in order:
        if t.op is not None and t.op.differentiable and t.data.dtype.kind in "fc":
            rules = t.op.rules or t.inputs
            for x, rule in zip(t.inputs, rules, strict=False):
                if rule is not None and x.order in reached:
                    reached.add(t.order)
                    break
    return reached
