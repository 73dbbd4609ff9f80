"""The exceptions: each says what was wrong, where, and what would be right."""


class ShapeError(ValueError):
    """Shapes, ranks or lengths do not fit together."""


class DtypeError(TypeError):
    """Number types do not fit together."""


class GraphError(RuntimeError):
    """A gradient was asked for that the recorded graph cannot give."""


class NonFiniteError(FloatingPointError):
    """A NaN or an infinity appeared under ``debug()``."""


class StateError(ValueError):
    """A state, or a table of named arrays, has the wrong structure."""


class CheckpointError(ValueError):
    """A file is not a whole checkpoint, or not one for this object."""
