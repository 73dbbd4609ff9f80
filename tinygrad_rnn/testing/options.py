"""What a check does where its caller says nothing: set by the pytest plugin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Options:
    """Defaults of every check: the method of the reference, the seed, an oracle beside it."""

    method: str | None = None
    seed: int | None = None
    oracle: str | None = None


current = Options()
