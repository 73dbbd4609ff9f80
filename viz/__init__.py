"""Draw what tinygrad_rnn records: ``viz.draw(loss).save("loss.svg")``."""

from __future__ import annotations

from .drawing import Drawing, draw

__all__ = ["Drawing", "draw"]
