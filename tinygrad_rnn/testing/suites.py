"""One decorator, or one class, that makes every gradient test of a cell: a pytest node each."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
from hypothesis.strategies import SearchStrategy

from . import strategies
from .configs import RNNConfig
from .nodes import check_of, corners_in, names, run, wanted_of

__all__ = ["CellSuite", "gradtest", "names"]


def _settings_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what ``@pytest.mark.gradcheck(...)`` says of the checks of a test."""
    mark = request.node.get_closest_marker("gradcheck")
    return dict(mark.kwargs) if mark else {}


# --- the decorator ------------------------------------------------------------------------------


def gradtest(
    configs: SearchStrategy[RNNConfig],
    properties: str | Iterable[str] = "all",
    skip: dict[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make of one test function every gradient test of a cell, each a pytest node.

    The nodes are ``numeric`` (``check_module``), ``integrity`` (``check_vjp``), ``second_order``,
    each relation of layers by its name, and ``body``: the function itself, called with modules
    made from the drawn configurations (and with ``cfg``, and fixtures, if it takes them).

    Parameters
    ----------
    configs : strategy of RNNConfig
        As ``strategies.rnn_configs(cells=[MyCell])``.
    properties : "all" or names
    skip : dict of name to reason
        What shall not run, as ``{"causality": "attends ahead"}``.

    Raises
    ------
    TypeError, ValueError
        If there is no such property, a reason is missing, or `configs` is no strategy.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> from tinygrad_rnn.testing import strategies as st
    >>> @gradtest(st.rnn_configs(cells=[nn.RNNCell]), properties=["numeric", "body"])
    ... def test_rnn(module): ...
    >>> test_rnn.pytestmark[0].args[1]
    ['numeric', 'body']
    """
    if not isinstance(configs, SearchStrategy):
        raise TypeError(
            f"gradtest: write @gradtest(strategies.rnn_configs(cells=[MyCell])), a strategy of "
            f"RNNConfigs; got {configs!r}"
        )
    return lambda function: _decorated(function, configs, properties, dict(skip or {}))


def _decorated(
    function: Callable[..., Any],
    configs: SearchStrategy[RNNConfig],
    properties: str | Iterable[str],
    skip: dict[str, str],
) -> Callable[..., None]:
    wanted = wanted_of(f"gradtest of {function.__name__}", properties, skip, ("body",))
    taken = list(inspect.signature(function).parameters)
    bound = taken[:1] == ["self"]  # a method
    asked = taken[bound:]
    fixtures = [name for name in asked if name not in ("module", "cfg", "request")]
    corners = functools.cache(lambda: corners_in(configs, f"gradtest of {function.__name__}"))

    def test(*own: Any, relation: str, request: pytest.FixtureRequest, **given: Any) -> None:
        __tracebackhide__ = True
        reason = wanted[relation]
        if reason is None and relation == "body" and _empty(function):
            reason = f"the body of {function.__name__} is empty"
        if reason is not None:
            pytest.skip(reason)
        settings = _settings_of(request)

        def body(cfg: RNNConfig) -> None:
            values = {**given, "cfg": cfg, "request": request}
            if "module" in asked:
                values["module"] = cfg.make()
            function(*own, **{name: values[name] for name in asked})

        prop = body if relation == "body" else check_of(relation, settings)
        run(relation, prop, corners(), configs, request.node.nodeid, settings)

    functools.update_wrapper(test, function)
    test.of_the_suite = True  # type: ignore[attr-defined]
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in (*taken[:bound], "relation", "request", *fixtures)
    ]
    test.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    made: Callable[..., None] = pytest.mark.parametrize("relation", list(wanted))(test)
    return made


def _empty(function: Callable[..., Any]) -> bool:
    """Whether a function does nothing: ``...``, ``pass`` or a docstring."""
    idle = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "COPY_FREE_VARS"}
    return all(i.opname in idle for i in dis.get_instructions(function))


# --- the class ----------------------------------------------------------------------------------


class CellSuite:
    """Every gradient test of a cell as a class: derive from it, define ``make``.

    Each property is one method, ``test_numeric``, ``test_causality``, ...; one that the class
    defines itself stands in the place of the suite's.

    Attributes
    ----------
    configs : strategy of RNNConfig or None
        What is drawn; their cell is what ``make`` returns.  None: ``strategies.rnn_configs``.
    properties : "all" or names
    skip : dict of name to reason

    Raises
    ------
    ValueError
        Where the class is defined, if there is no such property or a reason is missing.

    Examples
    --------
    >>> from tinygrad_rnn import nn
    >>> class TestMine(CellSuite):
    ...     skip = {"causality": "attends ahead"}
    ...     def make(self, cfg):
    ...         return nn.RNNCell(cfg.D, cfg.H, activation="relu")
    >>> TestMine.test_causality.pytestmark[0].kwargs["reason"]
    'attends ahead'
    """

    configs: ClassVar[SearchStrategy[RNNConfig] | None] = None
    properties: ClassVar[str | Iterable[str]] = "all"
    skip: ClassVar[dict[str, str]] = {}

    def make(self, cfg: RNNConfig) -> Any:
        """Return a cell of ``cfg.D`` inputs and ``cfg.H`` units."""
        raise NotImplementedError(f"{type(self).__name__} defines no make(self, cfg) -> cell")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        where = cls.__name__
        if cls.configs is not None and not isinstance(cls.configs, SearchStrategy):
            raise TypeError(f"{where}: configs must be a strategy of RNNConfigs or None")
        wanted = wanted_of(where, cls.properties, cls.skip)
        for name in names():
            method = f"test_{name}"
            inherited = getattr(cls, method, None)
            if inherited is not None and not getattr(inherited, "of_the_suite", False):
                continue
            setattr(cls, method, _method(cls, name, wanted) if name in wanted else None)


def _method(cls: type[CellSuite], name: str, wanted: dict[str, str | None]) -> Callable[..., None]:
    """Return the test of one property."""

    def test(self: CellSuite, request: pytest.FixtureRequest) -> None:
        __tracebackhide__ = True
        make = _maker(self)
        strategy = cls.configs
        if strategy is None:
            strategy = strategies.rnn_configs(cells=[make])
        corners = [cfg.replace(cell=make) for cfg in _corners_of(cls, strategy)]
        configs = strategy.map(lambda cfg: cfg.replace(cell=make))
        settings = _settings_of(request)
        run(name, check_of(name, settings), corners, configs, request.node.nodeid, settings)

    test.__name__ = f"test_{name}"
    test.__qualname__ = f"{cls.__qualname__}.test_{name}"
    test.__module__ = cls.__module__
    test.of_the_suite = True  # type: ignore[attr-defined]
    reason = wanted[name]
    return test if reason is None else pytest.mark.skip(reason=reason)(test)


def _maker(suite: CellSuite) -> Callable[[RNNConfig], Any]:
    """Return ``suite.make`` under a name that is code: ``TestMine().make``."""

    def make(cfg: RNNConfig) -> Any:
        cell = suite.make(cfg)
        if not (hasattr(cell, "step") and hasattr(cell, "initial_state")):
            raise TypeError(
                f"{make.__name__} returned {type(cell).__name__}, expected a cell: "
                f"an nn.Cell with step(x, state)"
            )
        return cell

    make.__name__ = f"{type(suite).__name__}().make"
    return make


def _corners_of(cls: type[CellSuite], strategy: SearchStrategy[RNNConfig]) -> list[RNNConfig]:
    """Return the corners, found once for each class."""
    known: list[RNNConfig] | None = cls.__dict__.get("_known_corners")
    if known is None:
        known = list(dict.fromkeys(c.replace(cell=cls) for c in corners_in(strategy, cls.__name__)))
        cls._known_corners = known  # type: ignore[attr-defined]
    return known
