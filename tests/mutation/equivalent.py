"""Mutants that compute the same as the original, each with the reason; by module and key."""

SPEED = "how fast, not what: both ways compute the same product"
ONE_USE = "there is one use: first and last are the same"
ONE = "there is one, or all are alike in this: first and last are the same"
SUM = "a sum of two does not depend on their order"
LENGTH_1 = "the axis has length 1: first and last are the same"
UNUSED = "the rule takes the attribute because the op has it, and does not use it"
TOP = "the output of the top layer is masked past an end anyway: it may be made finite before"
COPY = "own says where np.array(g) is not needed: without it there is one copy more"

EQUIVALENT = {
    ("ops", f"{function}: {change}"): reason
    for function, changes in {
        "pow.vjp": {
            "factor: (x == 0) * (y == 0) -> 2 * ((x == 0) * (y == 0))": "a mask: 2 is true as 1 is",
            "factor: (x == 0) * (y == 0) -> 0.5 * ((x == 0) * (y == 0))": "a mask: 0.5 is true too",
            "constant: where((x == 0) * (y == 0), 1.0, y - 1)"
            " -> where((x == 0) * (y == 0), 2.0, y - 1)": (
                "where x = y = 0 the power is multiplied by y = 0, and 0 ** 1 = 0 ** 2"
            ),
        },
        "_matmul_x": {
            "constant: g * y if x.ndim == 1 else g[..., None] * y"
            " -> g * y if x.ndim == 0 else g[..., None] * y": (
                "of two vectors g is a number, and g[..., None] * y is g * y"
            ),
            "index: (y @ g[..., None])[..., 0] -> (y @ g[..., None])[..., -1]": LENGTH_1,
            "dropped term: type(g) is np.ndarray and g.ndim == 2 and (y.size >= _LARGE)"
            " -> type(g) is np.ndarray and g.ndim == 2": SPEED,
            "constant: type(g) is np.ndarray and g.ndim == 2 and (y.size >= _LARGE)"
            " -> type(g) is np.ndarray and g.ndim == 1 and (y.size >= _LARGE)": SPEED,
            "comparison: y.size >= _LARGE -> y.size > _LARGE": SPEED,
            "comparison: y.size >= _LARGE -> y.size <= _LARGE": SPEED,
        },
        "_matmul_y": {
            "index: (x.mT @ g[..., None])[..., 0] -> (x.mT @ g[..., None])[..., -1]": LENGTH_1,
        },
        "_matmul_uses": {
            "index: x[0].T @ g[0] -> x[-1].T @ g[0]": ONE_USE,
            "index: x[0].T @ g[0] -> x[0].T @ g[-1]": ONE_USE,
        },
        "_sum_x": {"constant: False -> True": UNUSED},
        "_max_x": {"constant: False -> True": UNUSED},
        "_holds_array": {
            "dropped term: type(index) is tuple and ARRAY in [i for i in index if type(i) is str]"
            " -> type(index) is tuple": "a tuple without arrays is filled with none, only slower",
        },
        "_part_uses": {
            "index: uses[0][2]['axis'] -> uses[-1][2]['axis']": (
                "all uses are compared with that axis: where one differs, there are no tiles"
            ),
        },
        "unbroadcast": {
            "dropped term: n == 1 and g.shape[i + lead] != 1 -> n == 1": (
                "the sum over an axis of length 1 is what stands in it"
            ),
        },
    }.items()
    for change, reason in changes.items()
} | {
    ("autodiff", f"{function}: {change}"): reason
    for function, changes in {
        "sweep.arrive": {
            "dropped statement: (own.add if type(after) is np.ndarray else own.discard)(k)"
            " -> pass": "a new array for each sum, not one for all: then nothing is to discard",
        },
        "sweep": {
            "dropped statement: own.add(k) -> pass": COPY,
            "dropped statement: own.add(k) -> pass (2)": COPY,
            "dropped term: create_graph or k in own -> create_graph": COPY,
            "dropped term: x.order in path and gx is not None -> gx is not None": (
                "what arrives outside the path is neither kept nor passed on"
            ),
            "dropped statement: continue -> pass (3)": "an op with one rule for all has no others",
        },
        "of_dtype": {
            "dropped term: g.dtype == dtype or g.dtype.kind == 'c' -> g.dtype.kind == 'c'": (
                "a conversion to the type it has is a copy"
            ),
        },
    }.items()
    for change, reason in changes.items()
} | {
    ("graph", "reach: dropped statement: break -> pass"): "a set holds what is added twice once",
} | {
    ("nn.recurrent", f"Recurrent.{function}: {change}"): reason
    for function, changes in {
        "forward": {
            "dropped term: given.valid is not None and (k < self.num_layers - 1"
            " or self.merge == 'mul') -> given.valid is not None": TOP,
            "comparison: k < self.num_layers - 1 -> k <= self.num_layers - 1": TOP,
            "sign: self.num_layers - 1 -> self.num_layers + 1": TOP,
            "dropped term: self.num_layers - 1 -> self.num_layers": TOP,
            "constant: self.num_layers - 1 -> self.num_layers - 0": TOP,
            "dropped statement: here.place, here.marks = (Place(call), None) -> pass": (
                "_unroll leaves the same place and no marks behind"
            ),
            "index: v[:, 0] if given.unbatched and v.ndim > 2 and (v.shape[1] == 1) else v"
            " -> v[:, -1] if given.unbatched and v.ndim > 2 and (v.shape[1] == 1) else v": LENGTH_1,
        },
        "_unroll": {
            "swapped arguments: alike(result[1], state) -> alike(state, result[1])": (
                "whether two states have one structure does not depend on their order"
            ),
            "dropped term: y.requires_grad and y.size >= _WORTH_RELEASING"
            " and (here.mode == NEEDED) and (here.frozen is None)"
            " -> y.size >= _WORTH_RELEASING and here.mode == NEEDED and (here.frozen is None)": (
                "an output that needs no gradient has no inputs whose arrays could be released"
            ),
            "dropped term: valid is not None and count < N -> count < N": (
                "without lengths the count is N"
            ),
            "constant: (1, [0]) -> (2, [0])": "any count but 0 says that all sequences are inside",
            "constant: (1, [0]) -> (1, [1])": "without lengths the counts are not read",
            "index: valid[start:start + T] -> valid[start:start + T + 1]": (
                "of more rows those of the T steps are read"
            ),
            "index: (len(valid[0]), cell.hidden_size) -> (len(valid[-1]), cell.hidden_size)": ONE,
        },
        "_drop": {
            "index: inputs[0] -> inputs[-1]": "only its shape and type are read: all have the same",
            "swapped arguments: zip(inputs, mask, strict=True) -> zip(mask, inputs, strict=True)": (
                "a product of an array and a Tensor commutes"
            ),
        },
        "_join_state": {
            "index: finals[0] if len(finals) == 1 else tuple(finals)"
            " -> finals[-1] if len(finals) == 1 else tuple(finals)": ONE,
        },
    }.items()
    for change, reason in changes.items()
} | {
    ("nn.reading", f"Input.used: {change}"): reason
    for change, reason in {
        "swapped arguments: max(1, int(self.valid.any(axis=1).sum()))"
        " -> max(int(self.valid.any(axis=1).sum()), 1)": "the greater of two has no order",
    }.items()
} | {
    ("nn.reading", f"Reading.{change}"): reason
    for change, reason in {
        "_read: constant: ops.where(valid[:, :, None], x, 0.0)"
        " -> ops.where(valid[:, :, None], x, 1.0)": (
            "any finite number may stand beyond the end: no output and no state sees it"
        ),
        "_pad: missing copy: np.array([s.shape[0] for s in parts])"
        " -> [s.shape[0] for s in parts]": "lengths are made an array where they are checked",
    }.items()
} | {
    ("nn.cells", f"Cell.learn_state: {change}"): reason
    for change, reason in {
        "constant: self.initial_state(1) -> self.initial_state(2)": "the first row is taken",
        "index: Parameter(row.data[0]) -> Parameter(row.data[-1])": ONE,
    }.items()
} | {
    ("nn.variants", f"LSTMVariant.__init__: constant: self.b.data.{change}"): reason
    for change, reason in {
        "reshape(-1, hidden_size) -> self.b.data.reshape(-2, hidden_size)": (
            "NumPy takes any negative length for the one to be found"
        ),
    }.items()
} | {
    ("nn.noise", "_zone_out: comparison: rng.random(new.shape) < p -> rng.random(new.shape) <= p"):
        "a random number of 53 bits is p with a probability of 2^-53",
} | {
    ("nn.recompute", f"Segments.{change}"): reason
    for change, reason in {
        "__init__: swapped arguments: min(t + k, used) -> min(used, t + k)": (
            "the lesser of two does not depend on their order"
        ),
        "forward: index: outputs[0].data -> outputs[-1].data": ONE,
        "backward: swapped arguments: zip(g_end, g_state, strict=True)"
        " -> zip(g_state, g_end, strict=True)": SUM,
        "backward: swapped arguments: zip(g_parameters, more, strict=True)"
        " -> zip(more, g_parameters, strict=True)": SUM,
        "_shares: index: flat[k:k + width] -> flat[k:k + width + 1]": (
            "of a longer array the parts of the state are read, and no more"
        ),
        "_check_leaves: constant: nodes(ends, requiring=True) -> nodes(ends, requiring=False)": (
            "how many nodes are walked, not which are refused: these require a gradient"
        ),
    }.items()
} | {
    ("nn.states", key): reason
    for key, reason in {
        "choose: constant: (-1,) + (1,) * (new.ndim - 1) -> (-2,) + (1,) * (new.ndim - 1)": (
            "NumPy takes any negative length for the one to be found"
        ),
        "choose: constant: new.ndim != 2 -> new.ndim != 1": (
            "where there are two axes, the mask is reshaped to the shape that it has"
        ),
        "nest: missing copy: np.asarray(state) -> state": (
            "a list of numbers becomes an array in as_tensors too"
        ),
    }.items()
} | {
    ("nn.stacked", f"_Stacked.{change}"): reason
    for change, reason in {
        "_split_state: index: cells[0][2].initial_state -> cells[-1][2].initial_state": ONE,
        "_split_state: dropped statement: state = as_tensors(state, cells[0][2].dtype) -> pass": (
            "the class above makes Tensors of the parts"
        ),
        "_split_state: index: cells[0][2].dtype -> cells[-1][2].dtype": ONE,
        "_split_state: index: parts[0] if len(parts) == 1 else tuple(parts)"
        " -> parts[-1] if len(parts) == 1 else tuple(parts)": ONE,
        "_join_state: index: isinstance(parts[0], tuple) -> isinstance(parts[-1], tuple)": ONE,
    }.items()
}  # fmt: skip
