"""All planted defects."""

from . import engine, layers, lstm

DEFECTS = [*lstm.DEFECTS, *engine.DEFECTS, *layers.DEFECTS]
