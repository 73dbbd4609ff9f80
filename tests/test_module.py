"""Module: what is registered, converted, copied, printed, saved and loaded."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygrad_rnn import Module, Parameter, Tensor, nn, no_grad
from tinygrad_rnn.errors import DtypeError, StateError
from tinygrad_rnn.module import evaluating
from tinygrad_rnn.scope import scope


class Block(Module):
    def __init__(self, seed=0):
        self.scale = Parameter([2.0], name="own")
        self.parts = [nn.Linear(2, 3, rng=seed), (Parameter(np.ones(2)), nn.Dropout(0.5, rng=1))]
        self.named = {"a": nn.LayerNorm(3), "b": Parameter(np.zeros(1))}
        self.size = 3

    def forward(self, x):
        return self.named["a"](self.parts[0](x))


class Model(Module):
    def __init__(self):
        self.first = Block()
        self.rnn = nn.GRU(3, 2, rng=0)
        self.last = nn.Linear(2, 2, bias=False, rng=0)

    def forward(self, x):
        return self.last(self.rnn(self.first(x))[0])


NAMES = [
    "first.scale", "first.parts.0.W", "first.parts.0.b", "first.parts.1.0",
    "first.named.a.gain", "first.named.a.bias", "first.named.b",
    "rnn.L0.fwd.W_x", "rnn.L0.fwd.W_h", "rnn.L0.fwd.b", "rnn.L0.fwd.b_hn", "last.W",
]  # fmt: skip


# --- registration ---


def test_parameters_come_in_the_order_of_definition_through_lists_tuples_and_dicts():
    model = Model()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert list(model.state_dict()) == NAMES
    assert all(
        a is b for (_, a), b in zip(model.named_parameters(), model.parameters(), strict=True)
    )
    assert model.first.named["b"] is model.parameters()[6]


def test_modules_have_dotted_names_and_paths():
    model = Model()
    names = [name for name, _ in model.named_modules()]
    assert names == ["", "first", "first.parts.0", "first.parts.1.1", "first.named.a", "rnn",
                     "rnn.L0.fwd", "last"]  # fmt: skip
    assert [m.path for _, m in model.named_modules()] == names


def test_parameters_are_named_by_their_place_unless_they_have_a_name():
    by_name = {name: p.name for name, p in Model().named_parameters()}
    assert by_name.pop("first.scale") == "own"
    assert all(name == full for full, name in by_name.items())


def test_an_attribute_set_later_or_again_is_what_is_registered():
    model = Model()
    model.extra = Parameter([1.0])
    model.last = nn.Linear(2, 5, rng=0)
    names = list(model.state_dict())
    assert names[-3:] == ["last.W", "last.b", "extra"]  # `last` keeps its place
    assert model.last.W.shape == (2, 5)
    del model.extra
    assert "extra" not in model.state_dict()


def test_other_attributes_are_no_parameters():
    class Plain(Module):
        def __init__(self):
            self.table, self.t, self.text = np.ones(3), Tensor([1.0], requires_grad=True), ["a"]

    assert Plain().parameters() == []
    assert Plain().state_dict() == {}


def test_a_tied_parameter_is_listed_once_and_its_gradients_add():
    class Tied(Module):
        def __init__(self):
            self.embedding = nn.Embedding(4, 3, rng=0)
            self.out = nn.Linear(3, 4, bias=False, rng=0)
            self.out.W = self.embedding.W

    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["embedding.W"]
    assert len(model.parameters()) == 1
    W = model.embedding.W
    (model.embedding([1, 1]).sum() + (model.out.W * 2).sum()).backward()
    np.testing.assert_array_equal(W.grad, [[2] * 3, [4] * 3, [2] * 3, [2] * 3])
    twin = copy.deepcopy(model)
    assert twin.out.W is twin.embedding.W
    assert twin.out.W is not W
    model.load_state_dict({"embedding.W": np.ones((4, 3))})
    assert model.out.W.data.all()
    both = {"embedding.W": np.ones((4, 3)), "out.W": np.ones((4, 3))}
    model.load_state_dict(both)
    both["out.W"] = np.zeros((4, 3))
    with pytest.raises(StateError, match=r"embedding\.W and out\.W are one parameter, but differ"):
        model.load_state_dict(both)


def test_a_call_is_its_forward_and_forward_must_be_defined():
    model = Model()
    x = np.ones((3, 1, 2), np.float32)
    np.testing.assert_array_equal(model(x).data, model.forward(x).data)
    with pytest.raises(NotImplementedError, match=r"Module defines no forward"):
        Module()(1)
    assert scope().place is None


def test_modules_appended_to_a_list_are_named_at_the_first_call_or_when_asked_for():
    class Stack(Module):
        def __init__(self):
            self.blocks = []
            for k in range(2):
                self.blocks.append(nn.Sequential(nn.Linear(2, 2, rng=k)))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    inner = ["blocks.0", "blocks.0.layers.0", "blocks.1", "blocks.1.layers.0"]
    called = Stack()
    y = called(np.ones((1, 2)))
    assert [called.blocks[0].path, called.blocks[1].layers[0].W.name] == [
        "blocks.0", "blocks.1.layers.0.W"]  # fmt: skip
    assert y.place.call.path == "blocks.1.layers.0"
    asked = Stack()
    assert [m.path for _, m in asked.named_modules()] == ["", *inner]
    again = Stack()
    again.blocks = again.blocks
    assert again.blocks[1].path == "blocks.1"
    outer = Module()
    outer.part = again
    assert again.blocks[1].layers[0].b.name == "part.blocks.1.layers.0.b"
    again.blocks.append(nn.Linear(2, 2, rng=2))
    again.last = nn.Linear(2, 2, rng=3)
    assert list(outer.state_dict())[-1] == again.last.b.name == "part.last.b"
    assert again.blocks[2].W.name == "part.blocks.2.W"


def test_two_parameters_under_one_name_are_an_error():
    model = Module()
    model.d = {1: Parameter([1.0]), "1": Parameter([2.0])}
    for ask in (model.parameters, model.state_dict, lambda: model.load_state_dict({})):
        with pytest.raises(StateError, match=r"Module: two parameters are called d\.1$"):
            ask()
    model.d["1"] = model.d[1]
    assert list(model.state_dict()) == ["d.1"]


def test_a_module_that_contains_itself_is_an_error():
    one, two = nn.Sequential(), Module()
    with pytest.raises(StateError, match=r"me is a Module that contains itself"):
        two.me = two
    two = Module()
    one.layers.append(two)
    with pytest.raises(StateError, match=r"above\.a\.layers\.0 is a Module that contains itself"):
        two.above = {"a": one}
    one = nn.Sequential()
    one.layers.append(one)
    with pytest.raises(StateError, match=r"layers\.0.* is a Sequential that contains itself"):
        one.parameters()


# --- modes, gradients, types ---


def test_train_and_eval_reach_every_module_and_return_the_model():
    model = Model()
    assert all(m.training for _, m in model.named_modules())
    assert model.eval() is model
    assert not any(m.training for _, m in model.named_modules())
    assert model.train() is model
    assert all(m.training for _, m in model.named_modules())
    dropout, x = model.first.parts[1][1], Tensor(np.ones(100))
    assert (dropout(x).data == 0).any()
    model.eval()
    assert dropout(x) is x


def test_evaluating_gives_every_module_its_own_mode_back_also_after_an_error():
    model = Model()
    model.last.eval()
    before = [m.training for _, m in model.named_modules()]
    assert set(before) == {True, False}
    with evaluating(model):
        assert not any(m.training for _, m in model.named_modules())
        model.first.train()  # what happens inside stays inside
    assert [m.training for _, m in model.named_modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert [m.training for _, m in model.named_modules()] == before


def test_zero_grad_forgets_every_gradient():
    model = Model()
    model(np.ones((3, 1, 2))).sum().backward()
    assert model.last.W.grad is not None
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_parameter_gets_no_gradient_and_says_so():
    model = Model()
    model.last.W.requires_grad = False
    model(np.ones((3, 1, 2))).sum().backward()
    assert model.last.W.grad is None
    assert model.rnn.L0["fwd"].W_h.grad is not None
    (line,) = [line for line in model.summary().splitlines() if line.startswith("last.W")]
    assert line.endswith("in * out  frozen")
    assert "last.W" in model.state_dict()
    twin = copy.deepcopy(model)
    assert not twin.last.W.requires_grad


def test_astype_converts_parameters_states_and_inputs():
    model = Model()
    want = model(np.ones((3, 1, 2))).data
    model(np.ones((3, 1, 2))).sum().backward()
    assert model.astype(np.float64) is model
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    assert all(p.grad is None for p in model.parameters())
    y = model(np.ones((3, 1, 2)))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.data, want, rtol=1e-5)
    y.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {np.dtype("f8")}
    with pytest.raises(DtypeError, match="parameters need a floating type, got int64"):
        model.astype(int)


# --- copies ---


def test_a_deep_copy_shares_nothing_and_computes_the_same():
    model = Model()
    model(np.ones((3, 1, 2))).sum().backward()
    twin = copy.deepcopy(model)
    assert list(twin.state_dict()) == NAMES
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert type(q) is Parameter
        assert q.name == p.name
        assert not np.shares_memory(p.data, q.data)
        assert (p.grad is None) == (q.grad is None)
    x = np.ones((3, 1, 2))
    np.testing.assert_array_equal(twin(x).data, model(x).data)
    twin.last.W.data[:] = 0
    assert model(x).data.any()
    assert twin.rnn.L0["fwd"].path == "rnn.L0.fwd"


def test_a_deep_copy_of_a_part_is_named_anew_where_it_is_registered():
    class Twins(Module):
        def __init__(self):
            self.enc = Model()
            self.dec = copy.deepcopy(self.enc)
            self.list = [copy.deepcopy(self.enc.rnn)]

    model = Twins()
    loose = copy.deepcopy(model.enc)
    assert loose.path == ""
    assert [m.path for _, m in loose.named_modules()] == [m for m, _ in loose.named_modules()]
    assert [p.name for p in loose.parameters()] == ["own", *NAMES[1:]]
    assert [m.path for _, m in model.named_modules()] == [m for m, _ in model.named_modules()]
    for name, p in model.named_parameters():
        assert p.name == ("own" if name.endswith("first.scale") else name)
    out, _ = model.list[0](np.ones((1, 1, 3)))
    assert out.place.call.path == "list.0"


def test_a_deep_copy_keeps_tied_parameters_and_given_names():
    inner = Module()
    inner.embedding, inner.out = nn.Embedding(4, 3, rng=0), nn.Linear(3, 4, bias=False, rng=0)
    inner.out.W = inner.embedding.W
    outer = Module()
    outer.a = inner
    outer.b = copy.deepcopy(inner)
    assert outer.b.out.W is outer.b.embedding.W
    assert [p.name for p in outer.parameters()] == ["a.embedding.W", "b.embedding.W"]
    inner.out.training = False
    twins = copy.deepcopy([outer.a, outer])  # a part before its whole
    assert twins[0] is twins[1].a
    assert twins[0].path == "a"
    assert not twins[0].out.training


def test_a_state_dict_is_a_copy_and_so_is_what_is_loaded():
    model = nn.Linear(2, 3, rng=0)
    state = model.state_dict()
    state["W"][:] = 7
    assert (model.W.data != 7).all()
    model.load_state_dict(state)
    assert (model.W.data == 7).all()
    state["W"][:] = 8
    assert (model.W.data == 7).all()


def test_loading_keeps_the_parameters_and_their_type():
    model = nn.Linear(2, 3, rng=0)
    W = model.W
    model.load_state_dict({"W": [[1.0] * 3] * 2, "b": np.zeros(3, np.float16)})
    assert model.W is W
    assert (W.dtype, model.b.dtype) == (np.float32, np.float32)
    assert W.data.flags.c_contiguous
    model.load_state_dict({"W": np.zeros((3, 2)).T, "b": np.zeros(3)})
    assert W.data.flags.c_contiguous  # the layout that the products are fast in


def test_without_strict_other_names_are_passed_over():
    model = nn.Linear(2, 3, rng=0)
    model.load_state_dict({"W": np.zeros((2, 3)), "unknown": np.zeros(1)}, strict=False)
    assert not model.W.data.any()


# --- files ---


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["f2", "f4", "f8", "c16"]),
    layers=st.integers(1, 2),
)
def test_save_and_load_round_trip_bit_for_bit(tmp_path_factory, seed, dtype, layers):
    path = tmp_path_factory.mktemp("models") / "model"  # exactly this name
    model = nn.LSTM(2, 3, layers, bidirectional=True, rng=seed).astype(dtype)
    model.L0["fwd"].b.data[:4] = np.array([np.nan, np.inf, -0.0, 1e-8]).astype(dtype)
    model.save(path)
    other = nn.LSTM(2, 3, layers, bidirectional=True, rng=seed + 1).astype(dtype)
    assert other.load(path) is other
    for name, a in model.state_dict().items():
        assert other.state_dict()[name].tobytes() == a.tobytes()
    with np.load(path) as file:
        assert {"L0.fwd.W_x", "L0.rev.b"} <= set(file.files)


def test_two_saves_of_one_state_are_the_same_bytes(tmp_path):
    for name in "ab":
        Model().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_float64_file_loads_into_a_float32_module(tmp_path):
    nn.Linear(2, 3, dtype=np.float64, rng=0).save(tmp_path / "m")
    model = nn.Linear(2, 3, rng=1).load(tmp_path / "m")
    assert model.W.dtype == np.float32
    np.testing.assert_array_equal(model.W.data, nn.Linear(2, 3, rng=0).W.data)


# --- what is printed ---


def test_the_summary_lists_names_shapes_counts_and_formulas():
    model = nn.Readout(nn.GRU(2, 3, 2, rng=0), 5, rng=0)
    assert model.summary().splitlines() == [
        "name               shape   count",
        "layer.L0.fwd.W_x   (2, 9)     18  D * 3H",
        "layer.L0.fwd.W_h   (3, 9)     27  H * 3H",
        "layer.L0.fwd.b     (9,)        9  3H",
        "layer.L0.fwd.b_hn  (3,)        3  H",
        "layer.L1.fwd.W_x   (3, 9)     27  D * 3H",
        "layer.L1.fwd.W_h   (3, 9)     27  H * 3H",
        "layer.L1.fwd.b     (9,)        9  3H",
        "layer.L1.fwd.b_hn  (3,)        3  H",
        "linear.W           (3, 5)     15  in * out",
        "linear.b           (5,)        5  out",
        "total                        143",
    ]


def test_the_summary_of_own_parameters_and_of_thousands():
    class Own(Module):
        def __init__(self):
            self.W, self.table = Parameter(np.zeros((40, 30))), nn.Embedding(10, 2, rng=0)

    assert Own().summary().splitlines() == [
        "name     shape     count",
        "W        (40, 30)  1,200  40 * 30",
        "table.W  (10, 2)      20  V * D",
        "total              1,220",
    ]


def test_a_module_is_printed_with_its_children():
    assert repr(Model()) == "Model(first=Block, rnn=GRU, last=Linear)"
    assert repr(nn.Linear(2, 3, rng=0)) == "Linear(W=Parameter, b=Parameter)"


# --- the layers that do not recur ---


def test_linear_embedding_and_layer_norm_compute_their_equations():
    x = np.random.default_rng(0).standard_normal((4, 5, 3))
    linear = nn.Linear(3, 2, dtype=np.float64, rng=0)
    linear.b.data[:] = [1, -1]
    np.testing.assert_allclose(linear(x).data, x @ linear.W.data + [1, -1], rtol=1e-13)
    assert nn.Linear(3, 2, bias=False).b is None
    table = nn.Embedding(6, 3, rng=0)
    np.testing.assert_array_equal(table([[5, 0]]).data, table.W.data[[[5, 0]]])
    assert abs(nn.Embedding(500, 40, rng=0).W.data.std() - 1) < 0.03
    norm = nn.LayerNorm(3, dtype=np.float64)
    norm.gain.data[:], norm.bias.data[:] = 2, 1
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * 2 + 1
    np.testing.assert_allclose(norm(x).data, want, rtol=1e-10, atol=1e-12)


def test_dropout_reads_what_the_other_layers_read():
    for layer in (nn.Dropout(0.5, rng=0), nn.Dropout(0.5, rng=0).eval(), nn.Dropout(0.0)):
        for x in ([1.0, 2.0], [1, 2], np.arange(3), Tensor([1, 2]), np.ones(2, np.float32), 1):
            y = layer(x)
            assert (type(y), y.dtype) == (Tensor, np.float32)
            assert y.shape == np.shape(x)
        assert layer(np.ones(2)).dtype == np.float64
        assert layer(np.ones(2, np.float16)).dtype == np.float16
        assert layer(np.ones(2, complex)).dtype == np.complex128
        with pytest.raises(TypeError, match="a recurrent layer returns"):
            layer((Tensor([1.0]), Tensor([1.0])))


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: nn.Readout(nn.Linear(2, 3), 2), TypeError,
         "Readout: layer is Linear, expected a recurrent layer: RNN, LSTM, GRU or Recurrent"),
        (lambda: nn.LSTM(3, 4, dtype=int), DtypeError,
         "^LSTM: parameters need a floating type, got int64"),
        (lambda: nn.GRUCell(3, 4, dtype=bool), DtypeError, "^GRUCell: parameters .* got bool"),
        (lambda: nn.Linear(3, 4, dtype=int), DtypeError, "^Linear: .* got int64"),
        (lambda: nn.Embedding(3, 4, dtype=int), DtypeError, "^Embedding: .* got int64"),
        (lambda: nn.LayerNorm(3, dtype=int), DtypeError, "^LayerNorm: .* got int64"),
        (lambda: nn.Linear(-1, 3), ValueError, "^Linear: in_features=-1 must be a whole"),
        (lambda: nn.Linear(3, 0), ValueError, "^Linear: out_features=0 must be a whole"),
        (lambda: nn.Embedding(0, 3), ValueError, "^Embedding: num_embeddings=0 must be a whole"),
        (lambda: nn.Embedding(3, 0), ValueError, "^Embedding: embedding_dim=0 must be a whole"),
        (lambda: nn.LayerNorm(0), ValueError, "^LayerNorm: size=0 must be a whole"),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_made_names_itself_and_the_argument(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


def test_sequential_applies_modules_and_functions_in_order():
    one, two = nn.Linear(3, 4, rng=0), nn.Linear(4, 2, rng=1)
    model, x = nn.Sequential(one, np.abs, two), np.ones((5, 3))
    with no_grad():
        want = two(np.abs(one(x).data)).data
        y = nn.Sequential(one, lambda t: abs(t), two)(x)
    np.testing.assert_array_equal(y.data, want)
    assert list(model.state_dict()) == ["layers.0.W", "layers.0.b", "layers.2.W", "layers.2.b"]


def test_a_readout_reads_every_output_and_passes_states_and_traces_on():
    net = nn.Readout(nn.LSTM(2, 3, 2, bidirectional=True, rng=0), 4, rng=0)
    x = np.ones((5, 2, 2))
    o, state, trace = net(x, lengths=[5, 3], trace=True)
    out, want = net.layer(x, lengths=[5, 3])
    np.testing.assert_allclose(o.data, net.linear(out).data)
    np.testing.assert_array_equal(state[1].data, want[1].data)
    assert trace["L1.rev.c"].shape == (5, 2, 3)
    ragged, _ = net([x[:, 0], x[:2, 0]])
    assert [y.shape for y in ragged] == [(5, 4), (2, 4)]
    assert net.linear.W.shape == (6, 4)
    again, _ = net(x, state)
    assert (again.data != o.data).any()
