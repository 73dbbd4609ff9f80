"""Which functions are mutated, by area: files, and patterns for the names of functions."""

from pathlib import Path

PACKAGE = "tinygrad_rnn"
ROOT = Path(__file__).resolve().parent.parent.parent / PACKAGE

AREAS = {
    "ops": {
        "ops": [
            "*.vjp", "*.vjp_all", "*.collect", "_matmul_*", "_rows", "_sum_x", "_max_x", "_kept",
            "scatter", "_getitem_uses", "_scatter_all", "_take_uses", "_part_uses", "_part_index",
            "_concat_all", "_fill", "_holds_array", "total", "unbroadcast",
        ],
    },
    "autodiff": {
        "autodiff": ["sweep*", "gradients", "seed", "of_dtype"],
        "graph": ["nodes", "reach"],
        "tensor": ["Tensor.backward"],
    },
    "cells": {
        "nn.cells": [
            "*.step", "Cell.affine", "*.initial_state", "_same", "Cell.first_state",
            "Cell.learn_state", "Cell._initial_names", "Cell.dropped",
        ],
    },
    "variants": {
        "nn.variants": [
            "*.step", "*.initial_state", "*.preactivations", "*_gate", "*.candidate", "*.squash",
            "*.__init__",
        ],
    },
    "recurrent": {
        "nn.recurrent": [
            "Recurrent.forward", "Recurrent._unroll", "Recurrent._noise", "Recurrent._segment",
            "Recurrent._merge", "Recurrent._drop", "Recurrent._split_state", "Recurrent._initial",
            "Recurrent._join*", "_width", "_stack_marks",
        ],
        "nn.reading": [
            "Input.used", "Reading._read", "Reading._pad", "Reading._batch_of_state", "cut",
        ],
        "nn.states": ["choose", "keep_past_end", "first_of", "nest", "map_state", "as_tensors"],
        "nn.stacked": ["_Stacked.*"],
    },
    "options": {
        "nn.noise": ["Noise.*", "_zone_out"],
        "nn.recompute": ["Segments.*", "_cut_off"],
    },
}  # fmt: skip


def file_of(module):
    return ROOT / (module.replace(".", "/") + ".py")
