"""What models are made of: cells, recurrent layers, other layers, initialisers."""

from . import decoding, init
from .attention import BahdanauAttention, LuongAttention
from .cells import Cell, GRUCell, LSTMCell, RNNCell
from .conv import TDNN, Conv1d
from .feedback import FeedbackCell
from .layers import Dropout, Embedding, LayerNorm, Linear, Readout, Sequential, from_lecture
from .recurrent import Recurrent
from .seq2seq import EncoderDecoder
from .stacked import GRU, LSTM, RNN
from .variants import (
    CoupledLSTMCell,
    IRNNCell,
    LayerNormLSTMCell,
    LSTMVariant,
    MGUCell,
    PeepholeLSTMCell,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "TDNN",
    "BahdanauAttention",
    "Cell",
    "Conv1d",
    "CoupledLSTMCell",
    "Dropout",
    "Embedding",
    "EncoderDecoder",
    "FeedbackCell",
    "GRUCell",
    "IRNNCell",
    "LSTMCell",
    "LSTMVariant",
    "LayerNorm",
    "LayerNormLSTMCell",
    "Linear",
    "LuongAttention",
    "MGUCell",
    "PeepholeLSTMCell",
    "RNNCell",
    "Readout",
    "Recurrent",
    "Sequential",
    "decoding",
    "from_lecture",
    "init",
]
