"""What models are made of: cells, recurrent layers, other layers, initialisers."""

from . import init
from .cells import Cell, GRUCell, LSTMCell, RNNCell
from .feedback import FeedbackCell
from .layers import Dropout, Embedding, LayerNorm, Linear, Readout, Sequential, from_lecture
from .recurrent import Recurrent
from .stacked import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "Dropout",
    "Embedding",
    "FeedbackCell",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "RNNCell",
    "Readout",
    "Recurrent",
    "Sequential",
    "from_lecture",
    "init",
]
