"""What layers, losses and files say when they are misused, each message by itself."""

import errno
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinygrad_rnn import Tensor, archive, debug, functional, nn, ops
from tinygrad_rnn.errors import CheckpointError, DtypeError, NonFiniteError, ShapeError, StateError
from tinygrad_rnn.nn import GRU, LSTM, RNN, Cell, Linear, LSTMCell, Recurrent, RNNCell, Sequential

D, H = 3, 4


def layer(cls=LSTM, *args, **settings):
    return cls(D, H, *args, rng=0, **settings)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def says(kind, *texts):
    """Expect an error of exactly this kind whose message holds these texts, in this order."""
    return pytest.raises(kind, match=".*".join([re.escape(t) for t in texts]))


# --- the input of a layer ---


def test_x_of_a_wrong_rank():
    with says(ShapeError, "LSTM: x has shape (2, 2, 2, 3); expected (T, N, 3) or (T, 3)"):
        layer()(zeros(2, 2, 2, 3))
    with says(ShapeError, "LSTM: x has shape (3,); expected (T, N, 3) or (T, 3)"):
        layer()(zeros(3))
    with says(ShapeError, "x has shape (); expected (T, N, 3)"):
        layer()(1.0)


def test_x_of_a_wrong_size_names_the_layer_the_shapes_and_the_input_size():
    model = Sequential(layer())
    with says(ShapeError, "LSTM in layers.0: x read as (T=5, N=2, D=7), but input_size is 3"):
        model(zeros(5, 2, 7))
    with says(ShapeError, "x read as (T=5, N=2, D=7), but input_size is 3"):
        layer(batch_first=True)(zeros(2, 5, 7))


def test_lengths_of_the_shape_of_time_look_batch_first():
    with says(ShapeError, "lengths have shape (5,), expected (2,)", "pass batch_first=True"):
        layer()(zeros(5, 2, D), lengths=[1, 2, 3, 4, 5])
    with says(ShapeError, "lengths have shape (5,)", "looks time-first: leave batch_first=True"):
        layer(batch_first=True)(zeros(2, 5, D), lengths=[1, 2, 3, 4, 5])


def test_lengths_of_another_shape_give_no_such_hint():
    with says(ShapeError, "lengths have shape (3,), expected (2,): x read as (T=5, N=2") as info:
        layer()(zeros(5, 2, D), lengths=[1, 2, 3])
    assert "batch" not in str(info.value)


def test_a_state_whose_batch_is_the_time_looks_batch_first():
    state = zeros(1, 5, H), zeros(1, 5, H)
    with says(StateError, "LSTM: the state has N=5, but x read as (T=5, N=2", "batch_first=True"):
        layer()(zeros(5, 2, D), state)
    cell = Recurrent(RNNCell(D, H, rng=0))
    with says(StateError, "Recurrent: the state has N=5", "looks batch-first"):
        cell(zeros(5, 2, D), zeros(5, H))


def test_a_float64_tensor_into_a_float32_layer_names_astype():
    with says(DtypeError, "matmul: float64 mixed with float32 in L0.fwd, step t=1 of 5",
              "L0.fwd.W_x", "Tensor.astype('float", "Module.astype('float"):  # fmt: skip
        layer()(Tensor(np.zeros((5, 2, D))))
    with says(DtypeError, "float32", "float64", "astype"):
        layer(dtype=np.float64)(Tensor(zeros(5, 2, D)))
    with says(DtypeError, "L0.fwd.W_h", "astype"):
        layer(RNN)(zeros(5, 2, D), Tensor(np.zeros((1, 2, H))))


def test_no_steps_and_no_batch():
    with says(ShapeError, "x read as (T=0, N=2, D=3): T and N must be 1 or more"):
        layer()(zeros(0, 2, D))
    with says(ShapeError, "x read as (T=5, N=0, D=3): T and N must be 1 or more"):
        layer()(zeros(5, 0, D))
    with says(ShapeError, "T and N must be 1 or more"):
        layer()(zeros(0, D))


def test_x_that_is_no_numbers():
    with says(DtypeError, "LSTM: x is <U1, not numbers"):
        layer()([["a", "b", "c"]])


def test_nested_lists_of_unequal_length():
    with says(ShapeError, "x has parts of unequal length; pass sequences as a list of arrays"):
        layer()([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])


# --- lengths ---


def test_a_negative_length():
    with says(ShapeError, "LSTM: length -1 of sequence 1 is not in 0..T=5"):
        layer()(zeros(5, 2, D), lengths=[3, -1])


def test_a_length_beyond_the_end():
    with says(ShapeError, "LSTM: length 6 of sequence 0 is not in 0..T=5"):
        layer()(zeros(5, 2, D), lengths=[6, 1])


def test_lengths_that_are_no_integers():
    with says(DtypeError, "LSTM: lengths are integers, got float64"):
        layer()(zeros(5, 2, D), lengths=[3.0, 2.0])
    with says(DtypeError, "lengths are integers, got bool"):
        layer()(zeros(5, 2, D), lengths=[True, True])


def test_lengths_of_a_single_sequence():
    with says(ShapeError, "lengths go with a batch, but x read as (T=5, N=1, D=3) is one"):
        layer()(zeros(5, D), lengths=[3])


# --- states ---


def test_a_state_of_a_wrong_structure():
    expected = "expected ((1, 2, 4), (1, 2, 4)), that is (layers * directions, N, H)"
    with says(StateError, "LSTM: the state is (1, 2, 4), " + expected):
        layer()(zeros(5, 2, D), zeros(1, 2, H))
    with says(StateError, "GRU: the state is ((1, 2, 4),), expected (1, 2, 4)"):
        layer(GRU)(zeros(5, 2, D), (zeros(1, 2, H),))
    with says(StateError, "RNN: the state is (), expected (1, 1, 4)"):
        RNN(0, H, rng=0)(None, (), steps=3)


def test_a_state_of_a_wrong_shape():
    with says(StateError, "RNN: the state is (2, 2, 4), expected (1, 2, 4)"):
        layer(RNN)(zeros(5, 2, D), zeros(2, 2, H))
    with says(StateError, "RNN: the state is (1, 3, 4), expected (1, 2, 4)"):
        layer(RNN)(zeros(5, 2, D), zeros(1, 3, H))
    with says(StateError, "RNN: the state is (1, 1, 4), expected (1, 4)") as info:
        layer(RNN)(zeros(5, D), zeros(1, 1, H))
    assert "(layers * directions, H)" in str(info.value)


def test_states_of_a_stack_of_cells():
    stack = Recurrent([RNNCell(D, H, rng=0), LSTMCell(H, H, rng=0)])
    with says(StateError, "must be a tuple of 2 states, one for each layer and direction, got ("):
        stack(zeros(5, 2, D), zeros(2, H))
    with says(StateError, "state of L1.fwd is (2, 4), expected ((2, 4), (2, 4))"):
        stack(zeros(5, 2, D), (zeros(2, H), zeros(2, H)))
    with says(StateError, "the state of L0.fwd is (1, 2, 4), expected (1, 4) (with N=1)"):
        stack(zeros(5, D), (zeros(2, H), (zeros(H), zeros(H))))


def test_a_bare_cell_checks_its_input_and_its_state():
    cell = RNNCell(D, H, rng=0)
    with says(ShapeError, "RNNCell: x has shape (3,), expected (N, 3)"):
        cell(zeros(D))
    with says(ShapeError, "RNNCell: x has shape (2, 5), expected (N, 3)"):
        cell(zeros(2, 5))
    with says(ShapeError, "RNNCell: x (N, 3) is missing"):
        cell(None)
    with says(StateError, "RNNCell: the state is (1, 4), expected (2, 4)"):
        cell(zeros(2, D), zeros(1, H))


# --- making layers ---


def test_cells_that_do_not_stack():
    with says(ShapeError, "layer 0 gives 4 features, but a cell of layer 1 takes input_size=3"):
        Recurrent([RNNCell(D, H), RNNCell(D, H)])
    pair = RNNCell(D, H), RNNCell(D, H)
    with says(ShapeError, "layer 0 gives 8 features, but a cell of layer 1 takes input_size=4"):
        Recurrent([pair, (RNNCell(2 * H, H), RNNCell(H, H))])
    with says(ValueError, "layer 1 has 1 directions, layer 0 2"):
        Recurrent([pair, RNNCell(2 * H, H)])
    with says(ValueError, "layer 0 has 3 directions"):
        Recurrent([(*pair, RNNCell(D, H))])
    with says(ValueError, "a list of cells, one for each layer, must not be empty"):
        Recurrent([])
    with says(TypeError, "layer 0 holds Linear, which is no Cell"):
        Recurrent(Linear(D, H))


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_out_of_range(p):
    with says(ValueError, f"LSTM: dropout={p} is not in [0, 1]"):
        layer(dropout=p)
    with says(ValueError, f"Dropout: p={p} is not in [0, 1]"):
        nn.Dropout(p)
    with says(ValueError, f"dropout: p={p} is not in [0, 1]"):
        functional.dropout(zeros(3), p)


def test_sizes_and_settings_of_cells():
    with says(ValueError, "GRUCell: input_size=-1 must be a whole number, 0 or more"):
        nn.GRUCell(-1, H)
    with says(ValueError, "RNNCell: hidden_size=0 must be a whole number, 1 or more"):
        RNNCell(D, 0)
    with says(ValueError, "LSTM: num_layers=0 must be a whole number, 1 or more"):
        LSTM(D, H, 0)
    with says(ValueError, "RNNCell: activation is one of tanh, relu, identity or a callable"):
        RNNCell(D, H, activation="sigmoid")
    with says(TypeError, "RNN: bias is a bool; pass the activation by name: activation='relu'"):
        RNN(D, H, 1, "relu")


# --- lists of sequences, steps ---


def test_a_list_with_a_sequence_of_a_wrong_size():
    with says(ShapeError, "LSTM: sequence 1 has shape (5, 2); expected (T, 3)"):
        layer()([zeros(4, D), zeros(5, 2)])
    with says(ShapeError, "LSTM: sequence 0 has shape (3,); expected (T, 3)"):
        layer()([zeros(D), zeros(D)])


def test_a_list_of_empty_sequences():
    with says(ShapeError, "LSTM: all 2 sequences are empty: T must be 1 or more"):
        layer()([zeros(0, D), zeros(0, D)])


def test_a_list_of_sequences_with_lengths():
    with says(ShapeError, "a list of sequences has its own lengths; pass no lengths"):
        layer()([zeros(2, D)], lengths=[2])


def test_steps_where_they_do_not_belong():
    with says(ShapeError, "LSTM: steps=4, but x read as (T=5, N=2, D=3)"):
        layer()(zeros(5, 2, D), steps=4)
    with says(ShapeError, "LSTM: input_size is 3, so x (T, N, 3) is needed"):
        layer()(None, steps=4)
    free = RNN(0, H, rng=0)
    with says(ShapeError, "RNN: input_size is 0: pass x=None and steps=T"):
        free(zeros(5, 2, 1))
    for steps in (None, 0, -2, 2.5):
        with says(ShapeError, f"without input pass steps=T, 1 or more; got {steps}"):
            free(None, steps=steps)
    with says(ShapeError, "lengths go with x; without input pass steps=T"):
        free(None, steps=3, lengths=[2])


# --- classes, masks, targets ---


def test_ids_out_of_range():
    with says(IndexError, "embedding: id 10 at [1, 0] is not in 0..9"):
        nn.Embedding(10, 2, rng=0)([[1, 2], [10, 3]])
    with says(IndexError, "embedding: id -1 at [0] is not in 0..9"):
        nn.Embedding(10, 2, rng=0)([-1])
    with says(IndexError, "one_hot: id 3 at [0] is not in 0..2"):
        functional.one_hot([3], 3)
    with says(IndexError, "cross_entropy: id 3 at [1] is not in 0..2"):
        functional.cross_entropy(zeros(2, 3), [0, 3])


def test_ids_that_are_floats():
    with says(TypeError, "embedding: ids are integers, got float64"):
        nn.Embedding(10, 2, rng=0)([1.0])
    with says(TypeError, "one_hot: ids are integers, got float64"):
        functional.one_hot([1.0], 3)
    with says(TypeError, "cross_entropy: ids are integers, got float32"):
        functional.cross_entropy(zeros(2, 3), np.zeros(2, np.float32))


def test_targets_of_a_wrong_length():
    with says(ShapeError, "cross_entropy: targets (3,) do not fit logits (2, 5)",
              "class numbers (2,), or distributions (2, 5)"):  # fmt: skip
        functional.cross_entropy(zeros(2, 5), [0, 1, 2])


def test_a_mask_of_a_wrong_shape():
    with says(ShapeError, "cross_entropy: mask (3,) does not fit logits (2, 5)"):
        functional.cross_entropy(zeros(2, 5), [0, 1], mask=[True, True, False])
    with says(ShapeError, "mask (2, 1) does not fit logits (2, 4, 5)"):
        functional.cross_entropy(zeros(2, 4, 5), np.zeros((2, 4), int), mask=[[True], [False]])
    for mask in ((3,), (2, 3), (2, 4, 5, 1), (1,)):
        with says(ShapeError, f"mse_loss: mask {mask} does not fit prediction (2, 4, 5): expected"):
            functional.mse_loss(zeros(2, 4, 5), zeros(2, 4, 5), mask=np.ones(mask, bool))


def test_reductions_and_classes_of_a_loss():
    with says(ValueError, 'cross_entropy: reduction is "sum", "mean" or "none", got \'avg\''):
        functional.cross_entropy(zeros(1, 2), [0], reduction="avg")
    with says(ShapeError, "logits need an axis of classes"):
        functional.cross_entropy(np.float32(1.0), 0)
    with says(ShapeError, "ignore_index goes with class numbers, not distributions"):
        functional.cross_entropy(zeros(1, 2), [[0.5, 0.5]], ignore_index=0)
    with says(ShapeError, "prediction (2,) and target (2, 1) differ in shape"):
        functional.mse_loss(zeros(2), zeros(2, 1))


def test_layers_that_do_not_recur_name_themselves_and_the_size():
    model = Sequential(Linear(D, 2, rng=0), nn.LayerNorm(H))
    with says(ShapeError, "layers.0: x (5, 7) does not end in 3"):
        model(zeros(5, 7))
    with says(ShapeError, "layers.1: x (5, 2) does not end in 4"):
        model(zeros(5, D))
    with says(ShapeError, "split: axis 1 of (2, 5) cannot be cut into 4 equal parts"):
        functional.split(zeros(2, 5), 4)
    with says(ShapeError, "stack: there is nothing to stack"):
        functional.stack([])


def test_matrices_of_the_lecture_that_do_not_fit():
    with says(ShapeError, "U (4, 3), W (3, 3), V (2, 4) do not fit", "U (H, D), W (H, H)"):
        nn.from_lecture(U=zeros(4, 3), W=zeros(3, 3), V=zeros(2, 4))
    with says(ValueError, "from_lecture: pass W or W_hh, one of them"):
        nn.from_lecture(U=zeros(4, 3), V=zeros(2, 4))


# --- errors inside a step ---


class Faulty(Cell):
    """A cell that breaks at step t = 3."""

    def __init__(self, fault):
        super().__init__(D, D)
        self.fault, self.t = fault, 0

    def step(self, x, h):
        self.t += 1
        h = h + x
        return self.fault(x, h) if self.t == 3 else (h, h)


def test_a_bad_product_inside_a_step_names_the_layer_and_the_step():
    cell = Faulty(lambda x, h: (h @ np.ones((5, 2), np.float32), h))
    model = Sequential(nn.Readout(Recurrent(cell), 2, rng=0))
    with says(ShapeError, "matmul in layers.0.layer.L0.fwd, step t=3 of 6: ", "(2, 3)", "(5, 2)"):
        model(zeros(6, 2, D))


def test_a_step_that_returns_something_else():
    def run(fault):
        cell = Faulty(fault)
        cell.t = 2  # breaks at once
        Recurrent(cell)(zeros(6, 2, D))

    where = "Faulty.step in L0.fwd, step t=1 of 6: returned "
    with says(StateError, where + "Tensor; expected Tensors (output, state)"):
        run(lambda x, h: h)
    with says(StateError, where + "ndarray, Tensor; expected"):
        run(lambda x, h: (h.data, h))
    with says(StateError, where + "a state ((2, 3), (2, 3)), but was given (2, 3)"):
        run(lambda x, h: (h, (h, h)))
    with says(StateError, where + "a state (2,), but was given (2, 3)"):
        run(lambda x, h: (h, h.sum(axis=1)))


def test_a_step_that_is_not_defined():
    with says(NotImplementedError, "Cell defines no step(x, state)"):
        Recurrent(Cell(D, H))(zeros(2, 1, D))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_nan_in_the_data_names_the_layer_and_the_step_under_debug(as_tensor):
    x = zeros(6, 2, D)
    x[3, 1, 0] = np.nan
    x = Tensor(x) if as_tensor else x
    with debug(), says(NonFiniteError, "nan at [1, 0] in layers.0.L0.fwd, step t=4 of 6"):
        Sequential(layer(RNN))(x)


def test_nan_beyond_the_end_of_a_sequence_is_no_error_under_debug():
    x = zeros(6, 2, D)
    x[3:, 1] = np.nan
    with debug():
        out, _ = layer(bidirectional=True)(x, lengths=[6, 3])
        out.sum().backward()
    assert np.isfinite(out.data).all()


def test_nan_made_inside_a_step_names_the_op_and_the_step():
    cell = Faulty(lambda x, h: (ops.log(h - 1.0), h))
    with debug(), says(NonFiniteError, "log gave nan", "in L0.fwd, step t=3 of 6 from finite"):
        Recurrent(cell)(zeros(6, 2, D))


# --- names and files: nothing is changed ---


@pytest.fixture
def model():
    return layer(RNN)


def unchanged(model, change, kind, *texts):
    """Assert that ``change()`` raises, says `texts`, and leaves every parameter alone."""
    before = {name: p.data for name, p in model.named_parameters()}
    copies = {name: a.copy() for name, a in before.items()}
    with says(kind, *texts):
        change()
    for name, p in model.named_parameters():
        assert p.data is before[name]
        np.testing.assert_array_equal(p.data, copies[name])


def test_missing_and_unknown_names_and_wrong_shapes_are_all_named(model):
    state = {name: a + 1 for name, a in model.state_dict().items()}
    state["L0.fwd.W_xx"] = state.pop("L0.fwd.W_x")
    state["L0.fwd.b"] = np.zeros(7)
    unchanged(
        model,
        lambda: model.load_state_dict(state),
        StateError,
        "RNN.load_state_dict: missing L0.fwd.W_x; unknown L0.fwd.W_xx; "
        "L0.fwd.b has shape (7,), not (4,)",
    )


def test_a_shape_that_differs_is_an_error_also_where_names_may_be_missing(model):
    state = {"L0.fwd.W_h": np.ones((4, 4)), "L0.fwd.W_x": np.ones((4, 3))}
    unchanged(
        model,
        lambda: model.load_state_dict(state, strict=False),
        StateError,
        "L0.fwd.W_x has shape (4, 3), not (3, 4)",
    )


def test_arrays_of_another_kind_are_refused(model):
    state = model.state_dict() | {"L0.fwd.b": np.zeros(H, int)}
    unchanged(
        model, lambda: model.load_state_dict(state), StateError, "L0.fwd.b is int64, not float32"
    )


def test_files_that_are_no_module_of_this_shape_change_nothing(model, tmp_path):
    path = tmp_path / "model.npz"
    other = RNN(D, H + 1, rng=0)
    other.save(path)
    unchanged(model, lambda: model.load(path), StateError, "L0.fwd.W_x has shape (3, 5), not")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    unchanged(model, lambda: model.load(path), CheckpointError, "model.npz", "truncated")
    path.write_bytes(b"")
    unchanged(model, lambda: model.load(path), CheckpointError, "the file is empty")
    np.savez(path, **model.state_dict())
    unchanged(model, lambda: model.load(path), CheckpointError, "an .npz from elsewhere")
    path.write_bytes(pickle.dumps(model.state_dict()))
    unchanged(model, lambda: model.load(path), CheckpointError, "not a ZIP file")
    model.save(path)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("L0.fwd.b.npy", b"")
    unchanged(model, lambda: model.load(path), CheckpointError, "duplicate members ['L0.fwd.b']")
    missing = tmp_path / "none.npz"
    unchanged(model, lambda: model.load(missing), FileNotFoundError, "none.npz")


def test_a_malicious_pickle_is_never_run(model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "bomb.npz"
    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    np.savez(path, **{"L0.fwd.W_x": bomb})
    unchanged(model, lambda: model.load(path), CheckpointError, "bomb.npz")
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_is_refused(model, tmp_path):
    path = tmp_path / "other.npz"
    archive.write(path, model.state_dict(), {"kind": "optimizer"})
    unchanged(model, lambda: model.load(path), CheckpointError, "holds 'optimizer', not a module")


def test_saving_to_where_nothing_can_be_written(model, tmp_path):
    with says(OSError, "cannot save", "no file was written", "model.npz"):
        model.save(tmp_path / "nowhere" / "model.npz")


def test_a_full_disk_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    model.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    model.L0["fwd"].b.data += 1
    with says(OSError, "cannot save (No space left on device); the old file is unchanged"):
        model.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
