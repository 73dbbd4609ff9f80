"""What a defect of each family has to pass: the public checks, one procedure for each family.

It is what a user's ``gradtest``, ``check_op`` or check of an own backward runs at profile ``ci``:
the corners, then drawn configurations, always the same.  A prefix of the drawn ones is enough to
say that a defect is caught.
"""

import contextlib
import functools
from collections import namedtuple

import hypothesis
import numpy as np

from tinygrad_rnn import nn
from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing import programs, strategies
from tinygrad_rnn.testing.checks import check_grad
from tinygrad_rnn.testing.configs import grid
from tinygrad_rnn.testing.integrity import check_vjp
from tinygrad_rnn.testing.modules import as_subject, from_module
from tinygrad_rnn.testing.nodes import check_of, names
from tinygrad_rnn.testing.profiles import profile
from tinygrad_rnn.testing.registry import check_case, spec_of
from tinygrad_rnn.testing.relations import RELATIONS
from tinygrad_rnn.testing.relations.engine import FUNCTIONS
from tinygrad_rnn.testing.report import GradientError, unheard
from tinygrad_rnn.testing.second import Backward
from tinygrad_rnn.testing.subject import from_function

from .lstm import HandLSTM, arrays_of

Caught = namedtuple("Caught", "check where message cfg")
CELLS = (nn.RNN, nn.LSTM, nn.GRU)


class _Enough(Exception):  # noqa: N818  no failure
    pass


def drawn(strategy, count):
    """Return the first values that profile ci draws from a strategy."""
    found = []

    @hypothesis.settings(
        profile("ci"), phases=[hypothesis.Phase.generate], print_blob=False,
        report_multiple_bugs=False,
    )  # fmt: skip
    @hypothesis.given(strategy)
    def draw(value):
        if len(found) >= count:
            raise _Enough
        found.append(value)

    with contextlib.suppress(_Enough):
        draw()
    return found


def _by_size(configs):
    """Put the small ones first: the order in which they are tried changes no verdict."""
    return sorted(configs, key=lambda c: c.T * c.N * c.layers * c.directions * c.H)


@functools.cache
def layer_configs(count):
    configs = strategies.corners(CELLS) + drawn(strategies.rnn_configs(cells=CELLS), count)
    return tuple(_by_size(dict.fromkeys(configs)))


@functools.cache
def lstm_configs(count):
    """Return the configurations of one layer in one direction, with a state."""
    strategy = strategies.rnn_configs(
        cells=[nn.LSTM], layers=1, bidirectional=False, bias=True, batch_first=False,
        state=("random", "zero"), lengths=False,
    )  # fmt: skip
    corners = [c for c in strategies.corners([nn.LSTM]) if c.lengths is None]
    return tuple(_by_size(dict.fromkeys(corners + drawn(strategy, count))))


@functools.cache
def graphs(count):
    return tuple(drawn(programs.graphs(), count))


@functools.cache
def cases(op, count):
    spec = spec_of(op)
    return (*spec.corners, *drawn(spec.cases, count))


# --- the kit --------------------------------------------------------------------------------------


def lstm_check(name, subject, cfg):
    """Run one check of the hand-written LSTM."""
    {"check_grad": check_grad, "check_vjp": check_vjp}[name](subject, *arrays_of(cfg))


def lstm_checks(defect, count):
    subject = HandLSTM()  # one object, used for all: what it keeps between calls, it keeps
    for cfg in lstm_configs(count):
        for name in ("check_grad", "check_vjp"):
            yield name, cfg, functools.partial(lstm_check, name, subject, cfg)


def engine_checks(defect, count):
    wanted = [OPS[defect.op]] if defect is not None and defect.op else []
    for op in wanted:
        yield from op_checks(op, count)
    for relation in RELATIONS.values():
        if relation.kind == "engine":
            yield f"relation {relation.name}", None, relation
    for g in graphs(count):
        yield "check_grad", g, functools.partial(check_grad, g, *g.inputs)
        yield "check_grad order 2", g, functools.partial(check_grad, g, *g.inputs, order=2)
        yield "check_vjp", g, functools.partial(check_vjp, g, *g.inputs)


def op_checks(op, count):
    """Yield what ``check_op`` checks."""
    spec = spec_of(op)
    for case in cases(op, count):
        for dtype in ("float64", "float32"):
            settings = {"order": spec.order, "kinks": spec.kinks}
            yield "check_op", case, functools.partial(check_case, case, dtype, **settings)


def layer_checks(defect, count):
    slow = ("second_order", "optimiser_step")
    for chosen in ([n for n in names() if n not in slow], slow):
        for cfg in layer_configs(count):
            for name in chosen:
                yield name, cfg, functools.partial(check_of(name, {}), cfg)


CHECKS = {"lstm": lstm_checks, "engine": engine_checks, "layer": layer_checks}


def battery(family, defect=None, count=20):
    """Run every check of a family; return the first that says no, as ``Caught``, or None."""
    for name, where, check in CHECKS[family](defect, count):
        try:
            with np.errstate(all="ignore"):
                check()
        except GradientError as error:
            return Caught(name, repr(where), str(error), where)
    return None


def catches(defect, count=20):
    """Plant a defect, and return what the kit says first, or None where it misses it."""
    with defect.plant(), unheard():
        return battery(defect.family, defect, count)


# --- the same subjects for the rules of others ----------------------------------------------------


def subjects(defect, count):
    """Yield (key, subject, arrays) for the same configurations."""
    if defect.family == "lstm":
        subject = HandLSTM()
        for cfg in lstm_configs(count):
            yield cfg, subject, arrays_of(cfg)
    elif defect.family == "layer":
        for cfg in layer_configs(count):
            try:
                found = _layer(cfg)
            except Exception:  # the faulty layer does not even run: whoever checks it, sees that
                yield cfg, None, ()
            else:
                yield cfg, found, found.arrays
    else:
        for name, (f, arrays) in FUNCTIONS.items():
            yield name, from_function(f), list(arrays)
        for g in graphs(count):
            yield g, from_function(g), list(g.inputs)
        for case in cases(OPS[defect.op], count) if defect.op else ():
            f, arrays = _applied(case)
            yield repr(case), from_function(f), arrays
            if case.wrt:
                inner = as_subject(f, arrays)
                us = [grid(y.shape, 5).astype(y.dtype) for y in inner.forward(*arrays)]
                yield f"backward of {case!r}", _Pulled(Backward(inner, us)), [*arrays, *us]


def _layer(cfg):
    layer = cfg.make()
    lengths = None if cfg.lengths is None else list(cfg.lengths)
    return from_module(layer, cfg.x(), state=cfg.initial(layer), lengths=lengths)


def _applied(case):
    """Return an application of a primitive as a function of its differentiable inputs."""

    def f(*xs):
        inputs = list(case.inputs)
        for k, x in zip(case.wrt, xs, strict=True):
            inputs[k] = x
        return case(*inputs)

    return f, [case.inputs[k] for k in case.wrt]


class _Pulled:
    """The backward pass as a function, for checks of second order."""

    def __init__(self, backward):
        self.backward = backward

    def forward(self, *arrays):
        return self.backward.forward(*arrays)

    def pull(self, arrays):
        return self.backward.pull(arrays)

    def vjp(self, arrays, cotangents):
        return self.pull(arrays)[1](cotangents)
