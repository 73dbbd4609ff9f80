"""The recorded graph as a picture: one node per Tensor, one cluster per time step of a layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import graphviz

from tinygrad_rnn import Tensor
from tinygrad_rnn.files import replacing
from tinygrad_rnn.graph import nodes
from tinygrad_rnn.scope import Place, identify

from . import program
from .labels import kind, label, positions, text, unique

TEXT = (".dot", ".gv")  # endings that need no program
PICTURES = (".svg", ".png", ".pdf")

_GRAPH = {
    "rankdir": "LR",
    "newrank": "true",  # ranks steps among each other; without it arrows run backwards
    "bgcolor": "white",
    "fontname": "Helvetica",
    "labeljust": "l",
}
_NODE = {"shape": "box", "style": "rounded,filled", "fillcolor": "white", "fontname": "Helvetica"}
_EDGE = {"arrowsize": "0.7", "color": "#444444", "fontsize": "10", "labeldistance": "1.6"}
_FRAME = {"style": "rounded,filled", "color": "#bbbbbb", "fillcolor": "#f7f7f7"}
_KINDS = {  # shape and line differ as well as colour: a print in grey says the same
    "op": {},
    "named": {"fillcolor": "#ffedb3"},
    "parameter": {"style": "filled,bold", "fillcolor": "#cfe6f5", "color": "#0072b2"},
    "data": {"style": "filled", "fillcolor": "#e4e4e4"},
    "detached": {"style": "filled,dashed", "fillcolor": "#e4e4e4"},
    "constant": {"shape": "plaintext", "style": "", "margin": "0", "width": "0", "height": "0.3"},
}
_OUTPUT = {"color": "#d55e00", "penwidth": "2", "peripheries": "2"}
_CAPTION = "no op was recorded: nothing here requires a gradient, or no_grad() held; see record()"


class Drawing:
    """A picture of a graph: text at once, an image where Graphviz's program ``dot`` is installed.

    A notebook shows it as SVG, or as its text where it cannot be rendered.

    Attributes
    ----------
    dot : graphviz.Digraph
        The picture as the package ``graphviz`` holds it, open to additions.

    Examples
    --------
    >>> from tinygrad_rnn import Tensor
    >>> picture = draw(Tensor(0.5, name="eta"))
    >>> picture.dot.name
    'tinygrad_rnn'
    """

    def __init__(self, dot: Any) -> None:
        self.dot = dot

    @property
    def source(self) -> str:
        """The text of the picture in the DOT language; two runs of one program give the same."""
        return str(self.dot.source)

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file whose ending says what it is.

        ``.dot`` and ``.gv`` hold the text and need no program; ``.svg``, ``.png`` and ``.pdf``
        are rendered by ``dot``.  It gets 10 s: a picture that takes longer is given up with a
        warning, and its text is left beside, in a ``.dot`` file of the same name.

        Parameters
        ----------
        path : str or Path
            The file; an older one is replaced only when the new one is complete.

        Returns
        -------
        Path
            The file that was written: `path`, or the ``.dot`` file after 10 s.

        Raises
        ------
        ValueError
            If the ending is none of these.
        RuntimeError
            If ``dot`` is not installed, cannot be run, or fails.
        OSError
            If the file cannot be written.

        Warns
        -----
        UserWarning
            If ``dot`` takes longer than 10 s.

        Examples
        --------
        >>> import tempfile
        >>> from tinygrad_rnn import Tensor
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw(Tensor(0.5, name="eta")).save(folder + "/eta.dot").name
        'eta.dot'
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending in TEXT:
            return _write(path, self.source.encode())
        if ending not in PICTURES:
            raise ValueError(f"save: {path} must end in one of {', '.join(TEXT + PICTURES)}")
        try:
            picture = program.render(self.source, ending[1:])
        except TimeoutError as error:
            kept = _write(path.with_suffix(".dot"), self.source.encode())
            warnings.warn(
                f"save: {path} was not written: {error}; the text is in {kept}", stacklevel=2
            )
            return kept
        return _write(path, picture)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """Return what a notebook shows; never raises."""
        try:
            return {"image/svg+xml": program.render(self.source, "svg").decode()}
        except (RuntimeError, OSError, ValueError) as error:  # no dot, no time, no UTF-8
            reason = " ".join(str(error).split())
            return {"text/plain": f"// {reason}\n{self.source}"}

    def __repr__(self) -> str:
        return f"<Drawing {self.dot.comment}>"


def draw(tensors: Tensor | Sequence[Tensor]) -> Drawing:
    """Draw the recorded graph that one Tensor, or several, were made by, from left to right.

    Each Tensor is one node with its name, its op and its shape: parameters blue with a bold
    frame, data grey, numbers bare, what ``mark()`` named yellow, the given ones double-framed.
    The nodes of one time step of a layer stand in one frame.  A dashed arrow leads to what
    ``detach()`` cut off: no gradient passes there.  Where order matters, arrows count
    the inputs.

    What was not recorded is not drawn: the result of ``no_grad()`` is a single node, and where
    there is no op at all a caption says so.

    Parameters
    ----------
    tensors : Tensor, or list or tuple of Tensor
        What to draw, with all it was made from.

    Returns
    -------
    Drawing
        To be saved, or shown in a notebook.

    Raises
    ------
    TypeError
        If something else is given.
    ValueError
        If the list is empty.

    Examples
    --------
    >>> from tinygrad_rnn import Parameter, Tensor
    >>> w = Parameter([1.0, 2.0], name="w")
    >>> draw((w * 0.5).sum())
    <Drawing nodes=4, edges=3>
    """
    outputs = _outputs(tensors)
    order: list[Tensor] = nodes(outputs)
    ids = unique(identify(order))
    edges = sum([len(t.inputs) for t in order])
    dot = graphviz.Digraph(
        "tinygrad_rnn",
        comment=f"nodes={len(order)}, edges={edges}",
        graph_attr=_GRAPH,
        node_attr=_NODE,
        edge_attr=_EDGE,
    )
    if not any(t.op or t.requires_grad for t in order):
        dot.attr(label=_CAPTION)
    given = {t.order for t in outputs}

    def add(part: Any, members: Sequence[Tensor]) -> None:
        for t in members:
            marks = _OUTPUT if t.order in given else {}
            part.node(ids[t.order], label(t), **{**_KINDS[kind(t)], **marks})

    free, layers = _places(order)
    add(dot, free)
    frames = [(name, k, members) for name, steps in layers.items() for k, members in steps.items()]
    for n, (name, k, members) in enumerate(frames):
        title = f"{name}, t = {k + 1}" if len(layers) > 1 else f"t = {k + 1}"
        with dot.subgraph(name=f"cluster_{n}") as frame:
            frame.attr(label=text(title), **_FRAME)
            add(frame, members)
    for t in order:
        source = t.attrs["detached"]() if kind(t) == "detached" else None
        if source is not None and source.order in ids:
            dot.edge(ids[source.order], ids[t.order], style="dashed")
        for x, position in zip(t.inputs, positions(t), strict=True):
            weight = "0" if kind(x) == "parameter" else None  # used at every step: may be long
            dot.edge(ids[x.order], ids[t.order], headlabel=position, weight=weight)
    for steps in layers.values():
        for before, after in _sequence(list(steps.values())):
            dot.edge(ids[before.order], ids[after.order], style="invis", weight="0")
    return Drawing(dot)


def _outputs(tensors: Any) -> list[Tensor]:
    wrong = (
        "draw: a Tensor or a list of Tensors is needed, not {}; of a module draw what it returns"
    )
    if isinstance(tensors, Tensor):
        return [tensors]
    if not isinstance(tensors, list | tuple):
        raise TypeError(wrong.format(type(tensors).__name__))
    for k, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(wrong.format(f"{type(t).__name__} at index {k}"))
    if not tensors:
        raise ValueError("draw: the list is empty")
    return list(tensors)


# --- where it stands ---------------------------------------------------------------------------


def _places(order: Iterable[Tensor]) -> tuple[list[Tensor], dict[str, dict[int, list[Tensor]]]]:
    """Return the nodes that belong to no time step, and for each layer those of its steps."""
    calls: dict[str, dict[int, int]] = {}
    free: list[Tensor] = []
    layers: dict[str, dict[int, list[Tensor]]] = {}
    for t in order:
        at = t.place
        if at is not None:
            numbers = calls.setdefault(at.call.path, {})
            number = numbers.setdefault(id(at.call), len(numbers) + 1)
        if at is None or at.step is None or kind(t) == "parameter":
            free.append(t)
            continue
        layer = Place(at.call, at.layer, at.direction).id(number, "").rstrip(".")
        layers.setdefault(layer, {}).setdefault(at.step, []).append(t)
    return free, layers


def _sequence(frames: Sequence[Sequence[Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what must stand before what, so that the frames of a layer stand side by side."""
    framed = {t.order for frame in frames for t in frame}
    for before, after in pairwise(frames):
        inside = {t.order for t in after}
        for t in after:
            known = inside if t.order > before[-1].order else framed  # an older one might lead back
            if not any(x.order in known for x in t.inputs):
                yield before[-1], t


def _write(path: Path, content: bytes) -> Path:
    with replacing(path) as stream:
        stream.write(content)
    return path
