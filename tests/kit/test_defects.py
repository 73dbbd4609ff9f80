"""Every planted defect is caught, and what is not damaged passes the same checks."""

import pytest

from tests.defects import battery, naming, peers
from tests.defects.lstm import DEFECTS as IN_THE_LSTM
from tests.defects.lstm import HandLSTM, OnlyLast, arrays_of, truncation
from tests.defects.table import DEFECTS
from tinygrad_rnn import nn
from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing.configs import RNNConfig
from tinygrad_rnn.testing.report import GradientError, unheard

DRAWN = {"lstm": 20, "engine": 20, "layer": 0}  # beside the corners; profile ci draws 200


def test_the_table_holds_forty_faults_and_no_two_alike():
    assert len(DEFECTS) >= 40
    assert len({d.name for d in DEFECTS}) == len({d.mechanism for d in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.family}: {d.name}")
def test_the_kit_catches(defect):
    assert battery.catches(defect, DRAWN[defect.family])


@pytest.mark.parametrize("family", DRAWN)
def test_what_is_not_damaged_passes(family):
    assert battery.battery(family, None, DRAWN[family]) is None


@pytest.mark.parametrize("op", sorted({d.op for d in DEFECTS if d.op}))
def test_an_op_that_is_not_damaged_passes(op):
    for _, _, check in battery.op_checks(OPS[op], DRAWN["engine"]):
        check()


@pytest.mark.parametrize(
    ("T", "k"), [*((16, k) for k in range(1, 16)), *((64, k) for k in (1, 22, 43, 63))]
)
def test_a_cut_before_any_step_is_caught(T, k):
    cfg = RNNConfig(nn.LSTM, T=T, N=1, D=1, H=2)
    with truncation(k)(), unheard(), pytest.raises(GradientError):
        battery.check_grad(HandLSTM(), *arrays_of(cfg))


def test_the_guilty_rule_is_named():
    right, of, _ = naming.measure([d for d in DEFECTS if d.composite], factors=(1.001,))
    assert of >= 40
    assert right >= 0.95 * of


# --- the rules of others ----------------------------------------------------------------------

SMALL = RNNConfig(nn.LSTM, T=3, N=2, D=2, H=3)


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_accepts_the_right_gradient_and_rejects_a_gross_fault(peer):
    arrays = arrays_of(SMALL)
    assert peers.accepts(peer, HandLSTM(), arrays)
    for name in ("no output-gate path", "c_n ignored", "dW divided by T"):
        with next(d for d in IN_THE_LSTM if d.name == name).plant():
            assert not peers.accepts(peer, HandLSTM(), arrays)


@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_accepts_what_the_kit_does_not(peer):
    """The state is detached at step 4 of 32: what is lost is below their tolerances."""
    x, h, c, *weights = arrays_of(SMALL.replace(T=32))
    arrays = [x, h, c, *[0.3 * w for w in weights]]
    with truncation(4)():
        assert peers.accepts(peer, OnlyLast(), arrays)
        with unheard(), pytest.raises(GradientError):
            battery.check_grad(OnlyLast(), *arrays)


def test_the_rules_of_torch_are_torchs():
    """Accept and reject as gradcheck itself does."""
    torch = pytest.importorskip("torch")

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *xs):
            ctx.save_for_backward(*xs)
            return tuple(torch.tensor(y) for y in HandLSTM().forward(*[x.numpy() for x in xs]))

        @staticmethod
        def backward(ctx, *us):
            arrays = [x.numpy() for x in ctx.saved_tensors]
            found = subject.vjp(arrays, [u.numpy().copy() for u in us])
            return tuple(torch.tensor(g) for g in found)

    arrays = arrays_of(SMALL)
    # torch's engine itself sums a gradient of more axes, and hands no None to a Function
    apart = ("wrong shape", "None means ones", "input mutated")
    for defect in [d for d in IN_THE_LSTM if d.name not in apart][::3]:
        with defect.plant():
            for fast in (False, True):
                subject = HandLSTM()
                xs = [torch.tensor(a, requires_grad=True) for a in arrays]
                theirs = torch.autograd.gradcheck(
                    Function.apply, xs, fast_mode=fast, raise_exception=False
                )
                ours = peers.accepts("torch fast" if fast else "torch slow", HandLSTM(), arrays)
                assert ours == theirs, (defect.name, fast)
