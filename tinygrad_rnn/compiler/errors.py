"""Why a step runs unrolled."""

from __future__ import annotations


class CompileError(Exception):
    """A step, or a call of a layer, that no program stands for: it runs unrolled."""
