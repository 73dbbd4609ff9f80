"""Write the gradient tests of somebody's primitive, function, cell or module, ready to run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..module import Module
from ..nn import Cell, Recurrent
from ..op import Op
from ..tensor import Tensor
from .cases import Drawer, Shape, code, grid, positive, unit
from .registry import spec_of

__all__ = ["ghostwrite"]


def ghostwrite(obj: Any) -> str:
    """Return a test file for a primitive, a function of Tensors, a cell or a module.

    How it is called is found by trying: shapes that its inputs take, the domain on which it is
    finite, the sizes that its constructor wants.

    Parameters
    ----------
    obj : Op, callable, or a class or instance of Cell, Recurrent, Module
        Something that a module defines, so that the test can import it.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        If it cannot be imported, or no way to call it was found.

    Examples
    --------
    >>> from tinygrad_rnn import ops
    >>> print(ghostwrite(ops.tanh))
    \"\"\"Gradient tests of tanh.\"\"\"
    <BLANKLINE>
    from tinygrad_rnn import testing
    from tinygrad_rnn.ops import tanh
    <BLANKLINE>
    <BLANKLINE>
    def test_tanh():
        testing.check_op(tanh)
    <BLANKLINE>
    """
    if isinstance(obj, Op):
        spec_of(obj)  # raises in words where no test can be made
        place, name = _op_place(obj)
        return _file(
            name, [place], [f"def test_{_snake(name)}():", f"    testing.check_op({name})"]
        )
    cls = obj if isinstance(obj, type) else type(obj)
    if type(obj) is Recurrent:
        return _of_layer(obj)
    if issubclass(cls, Cell | Recurrent):
        return _of_cell(cls, None if isinstance(obj, type) else obj)
    if issubclass(cls, Module):
        return _of_module(cls, None if isinstance(obj, type) else obj)
    if callable(obj) and not isinstance(obj, type):
        return _of_function(obj)
    raise TypeError(
        f"ghostwrite: {obj!r} is no primitive, function of Tensors, cell, layer or module"
    )


# --- the file ------------------------------------------------------------------------------------


def _file(name: str, places: list[tuple[str, str]], body: list[str]) -> str:
    """Return the text: a docstring, the imports that the body needs, the body."""
    text = "\n".join(body)
    names: dict[str, set[str]] = {}
    known = [
        ("hypothesis", "given"), ("hypothesis", "settings"), ("tinygrad_rnn", "testing"),
        ("tinygrad_rnn.testing", "strategies as st"), ("tinygrad_rnn.testing.configs", "randomise"),
    ]  # fmt: skip
    for module, what in [*known, *places]:
        if (module, what) in places or re.search(rf"\b{what.split()[-1]}\b", text):
            names.setdefault(module, set()).add(what)
    blocks: dict[bool, list[str]] = {False: [], True: []}
    if re.search(r"\bnp\.", text):
        blocks[False].append("import numpy as np")
    for module in sorted(names):
        imported = sorted(names[module], key=lambda n: (not n.isupper(), not n[0].isupper(), n))
        blocks[_is_own(module)].append(f"from {module} import {', '.join(imported)}")
    imports = "\n\n".join(["\n".join(lines) for lines in blocks.values() if lines])
    return f'"""Gradient tests of {name}."""\n\n{imports}\n\n\n{text}\n'


def _is_own(module: str) -> bool:
    """Return whether a module is the user's own: its imports are a block by themselves."""
    if module.split(".")[0] in ("hypothesis", "tinygrad_rnn"):
        return False
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" not in Path(path).parts


def _place(obj: Any, what: str) -> tuple[str, str]:
    """Return the module and the name under which a class or function is imported."""
    name = getattr(obj, "__name__", "")
    for module in (getattr(obj, "__module__", None), *_public(obj, name)):
        if module and getattr(sys.modules.get(module), name, None) is obj:
            return _importable(module), name
    raise ValueError(
        f"ghostwrite: {what} {name or repr(obj)} cannot be imported by a test; "
        f"define it by name at the top level of a module"
    )


def _op_place(op: Op) -> tuple[tuple[str, str], str]:
    for module in [getattr(op.forward, "__module__", None) or "", *list(sys.modules)]:
        found = vars(sys.modules[module]) if module in sys.modules else {}
        name = next((n for n, v in list(found.items()) if v is op), None)
        if name is not None:
            return (_importable(module), name), name
    raise ValueError(
        f"ghostwrite: the primitive {op.name} cannot be imported by a test; "
        f"define it at the top level of a module"
    )


def _public(obj: Any, name: str) -> Iterator[str]:
    for module in list(sys.modules):
        if name and vars(sys.modules[module]).get(name) is obj:
            yield module


def _importable(module: str) -> str:
    """Return the name of a module; of a script that runs, the name of its file."""
    if module != "__main__":
        return module
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:
        raise ValueError(
            "ghostwrite: what a session defines cannot be imported by a test; "
            "write it into a module"
        )
    return Path(path).stem


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


# --- functions -----------------------------------------------------------------------------------

_DOMAINS: dict[str, Drawer] = {"": grid, "st.positive": positive, "st.unit": unit}
_TRIED = 4  # draws from each domain: a value outside the domain of f hides from one


def _of_function(f: Callable[..., Any]) -> str:
    place = _place(f, "the function")
    name = place[1]
    letters = _parameters(f)
    given, last = _found(f, letters)
    if given is None:
        raise ValueError(
            f"ghostwrite: {name}({', '.join(letters)}) took none of the arrays that were tried: "
            f"{last}"
        )
    if given.startswith("xs="):
        taken, passed = "xs", "*xs"
    else:
        taken = passed = ", ".join(letters)
    body = [
        "@settings(deadline=None)",
        *_wrapped(f"@given({given})"),
        f"def test_{_snake(name)}({taken}):",
        f'    testing.check_grad({name}, {passed}, order=2, kinks="reject")',
        f"    testing.check_vjp({name}, {passed})",
    ]
    return _file(name, [place], body)


def _parameters(f: Callable[..., Any]) -> list[str]:
    """Return the names of what a function must be given."""
    names = []
    for p in inspect.signature(f).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += ["x", "y"]
        elif p.default is p.empty and p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
    if not names:
        raise ValueError(f"ghostwrite: {f.__name__}() has no input to differentiate by")
    return names


def _found(f: Callable[..., Any], letters: list[str]) -> tuple[str | None, str]:
    """Return the arguments of ``@given`` that f takes, or what went wrong last."""
    n, last = len(letters), ""
    free = [((),) * n, ((1,),) * n, ((3,),) * n, ((2, 1, 3),) * n]
    if n > 1:
        wide: Shape = (2, 3)
        free += [((), *[wide] * (n - 1)), (*[wide] * (n - 1), (3,))]
    for domain, draw in _DOMAINS.items():
        problem = _fails(f, free, draw)
        if problem is None:
            if n > 1:
                return f"xs=st.broadcastable({n}{', ' if domain else ''}{domain})", ""
            return f"{letters[0]}=st.tensors({'values=' if domain else ''}{domain})", ""
        last = last or problem
    for shapes in _candidates(n):
        for domain, draw in _DOMAINS.items():
            if _fails(f, [shapes], draw) is None:
                values = f", values={domain}" if domain else ""
                pairs = zip(letters, shapes, strict=True)
                return ", ".join([f"{x}=st.tensors({s}{values})" for x, s in pairs]), ""
    return None, last


def _candidates(n: int) -> Iterator[tuple[Shape, ...]]:
    """Yield shapes for n inputs: all alike, a chain of products, a product and a bias."""
    chain = [(k + 2, k + 3) for k in range(n)]
    yield ((2, 3),) * n
    if n > 2:
        yield (*chain[:-1], (n + 1,))
    if n > 1:
        yield tuple(chain)
        yield ((2, 3),) + ((3,),) * (n - 1)
        yield ((3,),) * (n - 1) + ((3, 3),)
    for shape in ((3,), (3, 3), (4, 2, 3), ()):
        yield (shape,) * n


def _fails(f: Callable[..., Any], shapes: list[tuple[Shape, ...]], draw: Drawer) -> str | None:
    """Return why f does not take arrays of these shapes; None if it does, with finite values."""
    for seed in range(_TRIED):
        rng = np.random.default_rng(seed)
        for several in shapes:
            xs = [Tensor(draw(rng, s), requires_grad=True) for s in several]
            try:
                with np.errstate(all="ignore"):
                    y = f(*xs)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            parts = list(y) if isinstance(y, tuple | list) else [y]
            if not parts or not all(isinstance(p, Tensor) for p in parts):
                return f"it returned {type(y).__name__}, not a Tensor or a tuple of Tensors"
            if not all(np.all(np.isfinite(p.data)) for p in parts):
                return "a result is not finite"
            if not any(p.requires_grad for p in parts):
                return "its result depends on no input that requires a gradient"
    return None


def _wrapped(line: str) -> list[str]:
    """Break the arguments of a decorator over lines, where one line is not enough."""
    if len(line) <= 88:
        return [line]
    head, inner = line[:-1].split("(", 1)
    arguments = re.split(r", (?=\w+=st\.)", inner)
    return [f"{head}(", *[f"    {a}," for a in arguments], ")"]


# --- cells and layers ----------------------------------------------------------------------------


def _of_cell(cls: type[Any], instance: Any = None) -> str:
    place = _place(cls, "the class")
    name = place[1]
    extra = _more(cls, instance, 2)
    if issubclass(cls, Cell) and (extra or instance is not None):
        settings = _settings(cls, instance)
        made = ", ".join(["cfg.D", "cfg.H", *extra, *settings])
        body = [
            f"class Test{name[0].upper()}{name[1:]}(testing.CellSuite):",
            "    def make(self, cfg):",
            f"        return {name}({made})",
        ]
        return _file(name, [place], body)
    if extra:
        raise ValueError(f"ghostwrite: {name} needs {', '.join(extra)} beside its two sizes")
    body = [
        f"@testing.gradtest(st.rnn_configs(cells=[{name}]))",
        f"def test_{_snake(name)}(module):",
        "    assert module.training",
    ]
    return _file(name, [place], body)


def _of_layer(layer: Recurrent) -> str:
    """Return the tests of the cells that a layer runs."""
    classes = list(dict.fromkeys([type(cell) for _, _, cell in layer.cells()]))
    places = [_place(cls, "the class") for cls in classes]
    names = ", ".join([name for _, name in places])
    body = [
        f"@testing.gradtest(st.rnn_configs(cells=[{names}]))",
        "def test_cells(module):",
        "    assert module.training",
    ]
    return _file(names, places, body)


def _required(cls: type[Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(cls).parameters.values())
    return [p for p in parameters if p.default is p.empty and p.kind not in (2, 4)]


def _more(cls: type[Any], instance: Any, count: int) -> list[str]:
    """Return the required arguments of a constructor after the first ones, as code."""
    found = []
    for p in _required(cls)[count:]:
        value = _plain(instance, p.name)
        if value is None:
            raise ValueError(
                f"ghostwrite: {cls.__name__} needs {p.name}; pass an instance that keeps it "
                f"as an attribute, or give it a default"
            )
        found.append(f"{p.name}={value}" if p.kind is p.KEYWORD_ONLY else value)
    return found


def _settings(cls: type[Any], instance: Any) -> list[str]:
    """Return the optional arguments in which an instance differs from the defaults, as code."""
    found = []
    for p in inspect.signature(cls).parameters.values():
        value = _plain(instance, p.name)
        if p.default is p.empty or p.name in ("dtype", "rng") or value is None:
            continue
        if value != (json.dumps(p.default) if isinstance(p.default, str) else repr(p.default)):
            found.append(f"{p.name}={value}")
    return found


def _plain(instance: Any, name: str) -> str | None:
    """Return an attribute as code, where it is a number, a text or a truth."""
    value = getattr(instance, name, None)
    if name == "bias" and value is None and isinstance(instance, Module):
        value = getattr(instance, "b", None) is not None  # the framework's name for it
    if callable(value) and getattr(value, "__name__", None) == "relu":
        value = value.__name__
    value = value.name if isinstance(value, Op) else value
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # with the quotes of formatters
    return repr(value) if isinstance(value, bool | int | float) else None


# --- modules -------------------------------------------------------------------------------------

_SIZES = (3, 4, 5, 6)
_IDS = np.array([[0, 2], [2, 1]])


def _of_module(cls: type[Any], instance: Any = None) -> str:
    place = _place(cls, "the class")
    name = place[1]
    made = f"{name}({', '.join(_arguments(cls, instance))})"
    space: dict[str, Any] = {name: getattr(importlib.import_module(cls.__module__), name)}
    try:
        module = eval(made, space).astype("float64")
    except Exception as error:
        raise ValueError(
            f"ghostwrite: {made} failed ({error}); pass an instance whose attributes are named "
            f"as its constructor's arguments"
        ) from None
    text, evaluates = _taken(module, made)
    drawn = text.startswith("st.")
    setup = [f'    module = randomise({made}.astype("float64"))']
    setup += ["    module.eval()  # without dropout it is a function"] if evaluates else []
    if drawn:
        head = ["@settings(deadline=None)", f"@given(x={text})", f"def test_{_snake(name)}(x):"]
    else:
        head, setup = [f"def test_{_snake(name)}():"], [*setup, f"    x = {text}"]
    body = [
        *head,
        *setup,
        "    testing.check_module(module, x)",
        "    testing.check_vjp(module, x)",
    ]
    return _file(name, [place], body)


def _arguments(cls: type[Any], instance: Any) -> list[str]:
    """Return the arguments of a constructor: of an instance as it has them, else small sizes."""
    sizes = iter(_SIZES)
    found = []
    for p in _required(cls):
        value = _plain(instance, p.name)
        value = _size_of(instance, p.name) if value is None else value
        value = str(next(sizes, 2)) if value is None else value
        found.append(f"{p.name}={value}" if p.kind is p.KEYWORD_ONLY else value)
    if instance is not None:
        found += _settings(cls, instance)
    if "rng" in inspect.signature(cls).parameters:
        found.append("rng=0")
    return found


def _size_of(instance: Any, name: str) -> str | None:
    """Return a size that an instance keeps in the shape of a weight alone."""
    weight = getattr(instance, "W", None)
    if weight is None or weight.ndim != 2:
        return None
    first = ("in_features", "input_size", "num_embeddings")
    second = ("out_features", "output_size", "embedding_dim")
    axis = 0 if name in first else 1 if name in second else None
    return None if axis is None else str(weight.shape[axis])


def _taken(module: Any, made: str) -> tuple[str, bool]:
    """Return an input that a module takes, as code, and whether it must be in evaluation."""
    for evaluates in (False, True):
        if evaluates:
            module.eval()
        for text, x in _inputs(module):
            if _runs(module, x):
                return text, evaluates
    raise ValueError(
        f"ghostwrite: {made} took none of the inputs that were tried: arrays of one to three "
        f"axes, and integers"
    )


def _inputs(module: Any) -> Iterator[tuple[str, Array]]:
    """Yield what a module may take, as code and as an array."""
    widths = [p.shape[0] for p in module.parameters() if p.ndim] + [3]
    for width in dict.fromkeys(widths):
        for shape in ((2, width), (width,), (4, 2, width)):
            yield f"st.tensors({shape})", grid(np.random.default_rng(0), shape)
    yield code(_IDS), _IDS


def _runs(module: Any, x: Array) -> bool:
    """Return whether a module takes an input, and gives the same for it again."""
    try:
        first, again = (np.asarray(module(Tensor(x)).data) for _ in range(2))
    except Exception:
        return False
    return bool(np.array_equal(first, again) and np.all(np.isfinite(first)))
