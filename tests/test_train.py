"""Training: what a step does, stopping and continuing bit by bit, and what goes wrong."""

import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tinygrad_rnn import Module, Parameter, Tensor, archive, data, nn, optim
from tinygrad_rnn.errors import CheckpointError, NonFiniteError, ShapeError, StateError
from tinygrad_rnn.functional import cross_entropy, mse_loss
from tinygrad_rnn.train import History, Step, evaluate, fit

V = 5


class Net(Module):
    """Two layers with dropout between them, so that the generators matter."""

    def __init__(self, rng=0, hidden=4):
        rng = np.random.default_rng(rng)
        self.embedding = nn.Embedding(V, 3, rng=rng)
        self.lstm = nn.LSTM(3, hidden, num_layers=2, dropout=0.3, rng=rng)
        self.drop = nn.Dropout(0.2, rng=np.random.Generator(np.random.MT19937(7)))
        self.linear = nn.Linear(hidden, V, rng=rng)

    def forward(self, ids, state=None):
        h, state = self.lstm(self.embedding(ids), state)
        return self.linear(self.drop(h)), state


def loss(model, batch, state):
    x, y = batch
    logits, state = model(x, state)
    return cross_entropy(logits, y, reduction="mean"), state


class Setup:
    """Everything a run needs, made anew and always the same."""

    def __init__(self, hidden=4, kind=optim.Adam, ids=61, rng=0):
        text = np.random.default_rng(1).integers(V, size=ids)
        self.model = Net(rng, hidden)
        self.batches = data.bptt_batches(text, batch_size=3, steps=4)  # 5 batches, the last of 4
        self.validation = data.bptt_batches(text[::-1], batch_size=2, steps=7)
        self.optimizer = kind(self.model.parameters(), lr=optim.cosine(0.05, steps=15))

    def fit(self, **settings):
        settings = {"epochs": 3, "clip": 0.5, "validation": self.validation} | settings
        return fit(self.model, self.batches, loss, self.optimizer, **settings)

    def bytes(self) -> dict[str, Any]:
        """Everything that a failed resumption must leave alone, and a good one must restore."""
        rngs = [
            m.rng.bit_generator.state for _, m in self.model.named_modules() if "rng" in vars(m)
        ]
        return {
            "model": {k: a.tobytes() for k, a in self.model.state_dict().items()},
            "optimizer": {k: a.tobytes() for k, a in self.optimizer.state_dict().items()},
            "rng": repr(rngs),
            "batches": self.batches.state(),
            "validation": self.validation.state(),
        }


def after(step):
    """Return a callback that ends the run after this step."""
    return lambda s: s.step == step


@pytest.fixture(scope="module")
def whole():
    setup = Setup()
    return setup.fit(), setup.bytes()


# --- stopping and continuing -------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 16))
def test_a_run_stopped_anywhere_continues_bit_by_bit(tmp_path, whole, step):
    path = tmp_path / "run.npz"
    first = Setup().fit(checkpoint=path, callbacks=[after(step)])
    assert len(first.loss) == step
    again = Setup()
    history = again.fit(checkpoint=path, resume=True)
    assert (history, again.bytes()) == whole


def test_a_run_that_dies_continues_from_the_last_interval(tmp_path, whole):
    def die(step):
        if step.step == 9:
            raise ZeroDivisionError

    path = tmp_path / "run.npz"
    with pytest.raises(ZeroDivisionError):
        Setup().fit(checkpoint=path, checkpoint_every=4, callbacks=[die])
    assert archive.read(path)[0]["history/step"].tolist() == list(range(1, 9))
    again = Setup()
    assert (again.fit(checkpoint=path, resume=True), again.bytes()) == whole


def test_without_an_interval_a_checkpoint_is_written_at_the_end_of_each_epoch(tmp_path):
    path, seen = tmp_path / "run.npz", []

    def look(step):
        seen.append(len(archive.read(path)[0]["history/step"]) if path.exists() else None)

    Setup().fit(checkpoint=path, callbacks=[look])
    assert seen == [None] * 5 + [5] * 5 + [10] * 5
    assert len(archive.read(path)[0]["history/step"]) == 15


def test_a_finished_run_resumed_does_nothing_and_returns_its_history(tmp_path, whole):
    path = tmp_path / "run.npz"
    Setup().fit(checkpoint=path)
    again, steps = Setup(), []
    history = again.fit(checkpoint=path, resume=True, callbacks=[steps.append])
    assert (history, again.bytes(), steps) == (*whole, [])


def test_resume_without_a_file_starts_afresh_and_without_resume_the_file_is_replaced(
    tmp_path, whole
):
    path = tmp_path / "run.npz"
    assert Setup().fit(checkpoint=path, resume=True) == whole[0]
    steps: list[Step] = []
    assert Setup().fit(checkpoint=path, callbacks=[steps.append]) == whole[0]
    assert len(steps) == 15


def test_equal_runs_write_equal_bytes(tmp_path):
    for name in "ab":
        Setup().fit(checkpoint=tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_list_of_batches_continues_where_it_was(tmp_path):
    def run(**settings):
        setup = Setup()
        setup.batches = list(setup.batches)
        setup.validation = list(setup.validation)
        history = fit(
            setup.model, setup.batches, loss, setup.optimizer, epochs=2,
            validation=setup.validation, **settings,
        )  # fmt: skip
        return history, setup.model.state_dict()

    path = tmp_path / "run.npz"
    run(checkpoint=path, callbacks=[after(7)])
    history, model = run(checkpoint=path, resume=True)
    expected, other = run()
    assert history == expected
    assert all((model[k] == other[k]).all() for k in model)


def test_generators_in_containers_continue(tmp_path):
    def noisy(model, batch, state):
        noise = sum(rng.standard_normal() for rng in (*model.rngs["a"], model.rngs["b"]))
        return (model(batch) * noise).sum(), None

    def run(**settings):
        model = nn.Linear(1, 1, rng=0)
        model.rngs = {"a": [np.random.default_rng(k) for k in (1, 2)]}
        model.rngs["b"] = np.random.default_rng(3)
        sgd = optim.SGD(model.parameters(), lr=0.1)
        return fit(model, [np.ones((1, 1))] * 4, noisy, sgd, epochs=2, **settings)

    path = tmp_path / "run.npz"
    run(checkpoint=path, callbacks=[after(3)])
    assert {"rngs.a.0", "rngs.a.1", "rngs.b"} <= set(archive.read(path)[1]["generators"])
    assert run(checkpoint=path, resume=True) == run()


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_generator_of_numpy_continues(tmp_path, kind):
    def make():
        model = nn.Sequential(nn.Linear(2, 1, rng=0))
        model.noise = np.random.Generator(getattr(np.random, kind)(3))
        model.noise.integers(9, dtype=np.uint32)  # leaves half a word behind
        return model

    def noisy(model, batch, state):
        return (model(batch) + model.noise.standard_normal(1, np.float32)).sum(), None

    def run(**settings):
        model = make()
        sgd = optim.SGD(model.parameters(), lr=0.1)
        return fit(model, [np.ones((1, 2))] * 4, noisy, sgd, epochs=2, **settings)

    path = tmp_path / "run.npz"
    run(checkpoint=path, callbacks=[after(3)])
    assert run(checkpoint=path, resume=True) == run()


def test_the_carried_state_may_be_any_nest_of_tuples(tmp_path):
    states = []

    def nest(model, batch, state):
        states.append(state)
        a = np.zeros(3) if state is None else state[1][0] + 1
        t = Tensor([0.5]) if state is None else state[0] * 2
        return (model(batch) * t.item()).sum(), (t, (a, None, ()))

    def run(**settings):
        model = nn.Linear(1, 1, rng=0)
        sgd = optim.SGD(model.parameters(), lr=0.1)
        return fit(model, [[[1.0]]] * 4, nest, sgd, epochs=1, **settings)

    path = tmp_path / "run.npz"
    run(checkpoint=path, callbacks=[after(2)])
    states.clear()
    history = run(checkpoint=path, resume=True)
    t, (a, none, empty) = states[0]
    assert isinstance(t, Tensor)
    assert isinstance(a, np.ndarray)
    assert (t.data.tolist(), a.tolist(), none, empty) == ([1.0], [1.0] * 3, None, ())
    assert history == run()


# --- Ctrl-C ------------------------------------------------------------------------------------


def ctrl_c(at):
    def press(step):
        if step.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    return press


def test_ctrl_c_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, whole):
    path, before = tmp_path / "run.npz", signal.getsignal(signal.SIGINT)
    history = Setup().fit(checkpoint=path, callbacks=[ctrl_c(7)])
    assert history.interrupted
    assert len(history.loss) == 7
    assert repr(history).endswith("interrupted)")
    assert signal.getsignal(signal.SIGINT) is before
    again = Setup()
    history = again.fit(checkpoint=path, resume=True)
    assert not history.interrupted
    assert (history, again.bytes()) == whole


def test_ctrl_c_in_the_middle_of_a_step_lets_it_finish():
    setup = Setup()

    def pressed(model, batch, state):
        os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch, state)

    history = fit(setup.model, setup.batches, pressed, setup.optimizer, epochs=2)
    assert len(history.loss) == setup.optimizer.steps == 1


def test_ctrl_c_while_validating_ends_the_run_at_the_end_of_the_epoch():
    class Pressed(list):
        def __iter__(self):
            os.kill(os.getpid(), signal.SIGINT)
            return super().__iter__()

    setup = Setup()
    history = setup.fit(validation=Pressed(setup.validation))
    assert history.interrupted
    assert list(history.validation) == [1]


def test_ctrl_c_in_a_validation_loss_ends_the_run_at_the_end_of_the_epoch(tmp_path, whole):
    def pressed(model, batch, state):
        if not model.training and not calls:
            calls.append(os.kill(os.getpid(), signal.SIGINT))
        return loss(model, batch, state)

    calls, setup, path = [], Setup(), tmp_path / "run.npz"
    history = fit(
        setup.model, setup.batches, pressed, setup.optimizer, epochs=3, clip=0.5,
        validation=setup.validation, checkpoint=path,
    )  # fmt: skip
    assert history.interrupted
    assert len(history.loss) == 5
    assert history.validation == {1: whole[0].validation[1]}
    again = Setup()
    assert (again.fit(checkpoint=path, resume=True), again.bytes()) == whole


def test_a_second_ctrl_c_raises_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Setup().fit(callbacks=[ctrl_c(2), ctrl_c(2)])
    assert signal.getsignal(signal.SIGINT) is before


def test_where_ctrl_c_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        history = Setup().fit(callbacks=[ctrl_c(2)])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(history.loss) == 15
    assert not history.interrupted


def test_another_thread_can_train(whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(Setup().fit()))
    thread.start()
    thread.join()
    assert found == [whole[0]]


# --- checkpoints that do not fit ---------------------------------------------------------------


def refused(path, error, match, setup=None):
    setup = setup or Setup()
    before = setup.bytes()
    arrays = [p.data for p in setup.model.parameters()]
    with pytest.raises(error, match=match):
        setup.fit(checkpoint=path, resume=True)
    assert setup.bytes() == before
    assert all(p.data is a for p, a in zip(setup.model.parameters(), arrays, strict=True))


@pytest.fixture
def stopped(tmp_path):
    path = tmp_path / "run.npz"
    Setup().fit(checkpoint=path, callbacks=[after(7)])
    return path


def test_a_checkpoint_of_another_model_changes_nothing(stopped):
    refused(stopped, StateError, "embedding|lstm.L0.fwd.W_x has shape", Setup(hidden=6))


def test_a_checkpoint_of_another_optimizer_changes_nothing(stopped):
    refused(stopped, StateError, "expected 'SGD'", Setup(kind=optim.SGD))


def test_a_checkpoint_of_other_data_changes_nothing(stopped):
    refused(stopped, StateError, "bptt_batches", Setup(ids=73))
    for name in ("batches", "validation"):  # each alone: what fitted before is taken back
        setup = Setup()
        setattr(setup, name, getattr(Setup(ids=73), name))
        refused(stopped, StateError, "bptt_batches", setup)


def test_a_checkpoint_of_other_generators_changes_nothing(stopped):
    setup = Setup()
    del setup.model.drop.rng
    setup.model.drop.p = 0
    refused(stopped, StateError, "generators", setup)
    setup = Setup()
    setup.model.drop.rng = np.random.default_rng(0)  # where an MT19937 was
    refused(stopped, StateError, "MT19937.*PCG64", setup)


def test_a_list_of_another_length_changes_nothing(tmp_path):
    path, setup = tmp_path / "run.npz", Setup()
    fit(setup.model, list(setup.batches), loss, setup.optimizer, epochs=1, checkpoint=path)
    before = setup.bytes()
    with pytest.raises(StateError, match="'batches': 5"):
        fit(
            setup.model, list(setup.batches)[:3], loss, setup.optimizer,
            epochs=2, checkpoint=path, resume=True,
        )  # fmt: skip
    assert setup.bytes()["model"] == before["model"]


def test_foreign_files_change_nothing(tmp_path):
    path = tmp_path / "run.npz"
    Setup().model.save(path)
    refused(path, CheckpointError, "holds 'module', not a checkpoint of fit")
    np.savez(path, a=np.ones(3))
    refused(path, CheckpointError, "from elsewhere")
    path.write_text("loss,1\n")
    refused(path, CheckpointError, "not a ZIP")
    path.write_bytes(b"")
    refused(path, CheckpointError, "empty")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_changes_nothing(stopped, part):
    content = stopped.read_bytes()
    stopped.write_bytes(content[: int(len(content) * part)])
    refused(stopped, CheckpointError, "truncated|damaged|ZIP")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, meta: meta.pop("epoch"),
        lambda arrays, meta: meta.update(position=-1),
        lambda arrays, meta: meta.update(epoch=1.5),
        lambda arrays, meta: meta.update(state=["Tensor"] * 9),
        lambda arrays, meta: meta.update(state="Parameter"),
        lambda arrays, meta: meta.update(state=None),
        lambda arrays, meta: meta.update(generators=None),
        lambda arrays, meta: meta.update({"validation losses": 3}),
        lambda arrays, meta: meta["generators"].update({"drop.rng": {}}),
        lambda arrays, meta: meta["generators"]["drop.rng"]["state"].pop("pos"),
        lambda arrays, meta: arrays.pop("history/loss"),
        lambda arrays, meta: arrays.update({"history/loss": np.ones(3)}),
        lambda arrays, meta: arrays.update({"more/W": np.ones(3)}),
    ],
)
def test_a_checkpoint_that_was_tampered_with_changes_nothing(stopped, change):
    arrays, meta = archive.read(stopped)
    change(arrays, meta)
    archive.write(stopped, arrays, meta)
    refused(stopped, CheckpointError, "cannot be read")


@pytest.mark.parametrize("name", ["model/linear.b", "optimizer/3.m", "optimizer/steps"])
def test_a_checkpoint_without_an_array_changes_nothing(stopped, name):
    arrays, meta = archive.read(stopped)
    del arrays[name]
    archive.write(stopped, arrays, meta)
    refused(stopped, StateError, "missing")


def test_a_place_for_checkpoints_is_tried_before_the_first_step(tmp_path):
    setup = Setup()
    before = setup.bytes()
    with pytest.raises(FileNotFoundError, match="checkpoint: files cannot be made here"):
        setup.fit(checkpoint=tmp_path / "missing" / "run.npz")
    with pytest.raises(IsADirectoryError, match="checkpoint"):
        setup.fit(checkpoint=tmp_path)
    assert list(tmp_path.iterdir()) == []
    special = [os.devnull]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        special.append(tmp_path / "pipe")
    for path in special:
        with pytest.raises(OSError, match="checkpoint: it exists and is not a regular file"):
            setup.fit(checkpoint=path, resume=True)
    assert setup.bytes() == before


def test_a_checkpoint_that_cannot_be_written_later_is_a_warning(tmp_path, whole):
    folder = tmp_path / "folder"
    folder.mkdir()
    setup = Setup()
    with pytest.warns(UserWarning, match="no checkpoint was written at step") as caught:
        history = setup.fit(
            checkpoint=folder / "run.npz", callbacks=[lambda s: s.step == 1 and folder.rmdir()]
        )
    assert (history, setup.bytes()) == whole
    assert {w.filename for w in caught} == {__file__}


# --- what a step does --------------------------------------------------------------------------


def quadratic(model, batch, state):
    return (model.w * model.w).sum() * float(batch), None


class Bowl(Module):
    def __init__(self):
        self.w = Parameter([3.0, 4.0])


def test_a_step_clips_and_reports_the_norm_before_and_the_rate_it_used():
    model = Bowl()
    sgd = optim.SGD(model.parameters(), lr=lambda k: 0.5 / (k + 1))
    history = fit(model, [1.0, 1.0], quadratic, sgd, epochs=1, clip=1.0)
    assert history.loss == pytest.approx([25.0, 4.5**2])
    assert history.norm == pytest.approx([10.0, 9.0])
    assert history.lr == [0.5, 0.25]
    assert model.w.data == pytest.approx(np.array([3.0, 4.0]) * (5 - 0.75) / 5)


def test_the_state_is_carried_detached_and_dropped_after_an_epoch():
    setup, given = Setup(), []

    def spy(model, batch, state):
        given.append(state)
        return loss(model, batch, state)

    fit(setup.model, setup.batches, spy, setup.optimizer, epochs=2)
    assert [state is None for state in given] == [True] + [False] * 4 + [True] + [False] * 4
    for state in given:
        assert state is None or all(
            s.op is None and not s.requires_grad and not s.inputs for s in state
        )


def test_a_carried_view_is_laid_out_as_a_file_would_keep_it():
    given = []

    def view(model, batch, state):
        given.append(state)
        return quadratic(model, batch, None)[0], Tensor(np.ones((4, 6)))[::2, ::2]

    fit(model := Bowl(), [1, 1], view, optim.SGD(model.parameters(), lr=0.1), epochs=1)
    assert given[1].data.flags.forc


def test_validation_is_the_mean_over_items_in_evaluation_mode(whole):
    setup = Setup()
    setup.fit()
    value = evaluate(setup.model, setup.validation, loss)
    assert whole[0].validation[3] == value
    total = items = 0
    state = None
    setup.model.eval()
    for x, y in setup.validation:
        logits, state = setup.model(x, state)
        total, items = total + cross_entropy(logits, y).item(), items + y.size
    assert value == pytest.approx(total / items, rel=1e-6)


def test_evaluate_records_nothing_and_restores_the_modes():
    model = Net()
    model.linear.eval()
    seen = []

    def spy(model, batch, state):
        value, state = loss(model, batch, state)
        seen.append((value.requires_grad, model.training, model.linear.training))
        return value, state

    result = evaluate(model, Setup().validation, spy)
    assert isinstance(result, float)
    assert set(seen) == {(False, False, False)}
    assert (model.training, model.lstm.training, model.linear.training) == (True, True, False)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, [1], lambda *_: 1 / 0)
    assert model.training


def test_items_weigh_the_batches():
    model = Module()

    def value(model, batch, state):
        return Tensor(np.mean(batch[1])), None

    batches = [(None, np.array([1.0, 3.0])), (None, np.array([8.0]))]
    assert evaluate(model, batches, value) == pytest.approx(4.0)
    assert evaluate(model, batches, value, items=lambda batch: 1) == 5.0


def test_fit_trains_in_training_mode_and_evaluates_without(whole):
    setup, modes = Setup(), []

    def spy(model, batch, state):
        modes.append((model.training, model.drop.training))
        return loss(model, batch, state)

    setup.model.eval()
    fit(setup.model, setup.batches, spy, setup.optimizer, epochs=1, validation=setup.validation)
    assert modes[:5] == [(True, True)] * 5
    assert set(modes[5:]) == {(False, False)}
    assert setup.model.training


def test_callbacks_are_told_of_each_step_and_only_true_stops():
    setup, steps = Setup(), []
    history = setup.fit(callbacks=[steps.append, lambda s: "yes", lambda s: 1])
    assert [s.step for s in steps] == history.step == list(range(1, 16))
    assert [s.epoch for s in steps] == history.epoch == [1] * 5 + [2] * 5 + [3] * 5
    assert [s.loss for s in steps] == history.loss
    assert [(s.norm, s.lr) for s in steps] == list(zip(history.norm, history.lr, strict=True))
    assert all(type(x) is float for x in [*history.loss, *history.norm, *history.lr])
    last = steps[-1]
    assert (last.model, last.optimizer) == (setup.model, setup.optimizer)
    assert last.history is history
    assert isinstance(last, Step)
    calls = []
    history = Setup().fit(callbacks=[lambda s: np.bool_(s.step == 2), calls.append])
    assert len(history.loss) == len(calls) == 2
    assert not history.interrupted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(bad):
    model = Bowl()
    adam = optim.Adam(model.parameters(), lr=0.1)
    seen = []

    def keep(step):
        seen.append((model.w.data.copy(), adam.state_dict()))

    with pytest.raises(NonFiniteError, match=r"loss is -?(nan|inf) in step 4, epoch 2.*debug\(\)"):
        fit(
            model, [1.0, 1.0], lambda m, b, s: quadratic(m, bad if len(seen) == 3 else b, s), adam,
            epochs=3, callbacks=[keep],
        )  # fmt: skip
    assert (model.w.data == seen[-1][0]).all()
    assert all((a == seen[-1][1][k]).all() for k, a in adam.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer():
    model = Bowl()
    model.w.data[:] = [0.0, 4.0]  # the root has no slope at 0
    sgd = optim.SGD(model.parameters(), lr=0.1)
    with (
        np.errstate(divide="ignore"),
        pytest.raises(NonFiniteError, match="norm of the gradient is inf in step 1"),
    ):
        fit(model, [1], lambda m, *_: ((m.w**0.5).sum(), None), sgd, epochs=1, clip=1.0)
    assert model.w.data.tolist() == [0.0, 4.0]
    assert sgd.steps == 0


# --- misuse ------------------------------------------------------------------------------------


def misuse(match, error=ValueError, *, batches=None, function=loss, optimizer=None, **settings):
    setup = Setup()
    before = setup.bytes()["model"]
    with pytest.raises(error, match=match):
        fit(
            setup.model, setup.batches if batches is None else batches, function,
            optimizer or setup.optimizer, **{"epochs": 1, **settings},
        )  # fmt: skip
    assert setup.bytes()["model"] == before


def test_misuse_is_said_before_anything_changes(tmp_path):
    misuse("epochs=0", epochs=0)
    misuse("epochs=1.5", epochs=1.5)
    misuse("checkpoint_every=0", checkpoint=tmp_path / "a", checkpoint_every=0)
    misuse("need a path", resume=True)
    misuse("need a path", checkpoint_every=5)
    misuse("no batch in epoch 1", batches=[])
    misuse("iterator, which one loop uses up", TypeError, batches=iter([1]))
    misuse("iterator", TypeError, validation=(x for x in [1]))
    misuse("something to loop over, got int", TypeError, batches=3)
    misuse("none of the model's", optimizer=Setup().optimizer)
    misuse("max_norm", clip=-1.0)


def test_validation_that_is_the_training_data_is_refused():
    setup = Setup()
    with pytest.raises(ValueError, match="same object as batches"):
        setup.fit(validation=setup.batches)


def test_a_callback_that_loops_over_the_training_batches_is_refused(tmp_path):
    setup = Setup()
    with pytest.raises(StateError, match=r"callback of step 1 looped over batches.*make another"):
        setup.fit(
            checkpoint=tmp_path / "run.npz",
            callbacks=[lambda step: evaluate(step.model, setup.batches, loss)],
        )
    assert not (tmp_path / "run.npz").exists()
    setup = Setup()
    with pytest.raises(StateError, match="step 1 looped over batches"):
        setup.fit(callbacks=[lambda step: next(iter(setup.batches))])
    other = Setup().batches
    assert len(Setup().fit(callbacks=[lambda s: evaluate(s.model, other, loss)]).loss) == 15


def test_checkpoints_need_batches_that_know_where_they_are(tmp_path):
    misuse("state.. and restore..", TypeError, batches={1: 2}, checkpoint=tmp_path / "run.npz")


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [
        (Tensor(1.0), TypeError, "must return .loss, state., got Tensor.*return value, None"),
        ((Tensor(1.0),), TypeError, "must return"),
        (None, TypeError, "NoneType"),
        ((1.0, None), TypeError, "a Tensor first, got float"),
        ((Tensor([1.0, 2.0]), None), ShapeError, r"shape \(2,\), not a scalar"),
        ((Tensor(1.0), [Tensor(1.0)]), StateError, "tuple of these, got list"),
        ((Tensor(1.0), {"h": 1}), StateError, "got dict"),
    ],
)
def test_what_loss_returns_is_checked(result, error, match):
    misuse(match, error, function=lambda *_: result)
    with pytest.raises(error, match=match):
        evaluate(Module(), [1], lambda *_: result)


def test_a_state_that_changes_its_structure_is_an_error():
    def grow(model, batch, state):
        h = Tensor([0.0])
        return (model.w * 1.0).sum(), h if state is None else (h, h)

    model = Bowl()
    with pytest.raises(StateError, match=r"given the state Tensor and returned \['Tensor', 'Ten"):
        fit(model, [1, 2], grow, optim.SGD(model.parameters(), lr=0.1), epochs=1)


def test_evaluate_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no batch"):
        evaluate(Module(), [], loss)
    with pytest.raises(ValueError, match="no item"):
        evaluate(Module(), [[]], lambda *_: (Tensor(1.0), None))
    with pytest.raises(TypeError, match="iterator"):
        evaluate(Module(), iter([1]), loss)


# --- history -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_history_is_saved_and_loaded_without_loss(tmp_path, whole, ending):
    path = tmp_path / f"run{ending}"
    whole[0].save(path)
    assert History.load(path) == whole[0]
    assert list(tmp_path.iterdir()) == [path]
    whole[0].save(path)  # replaces


def test_the_table_has_one_row_per_step_and_validation_where_an_epoch_ends(tmp_path, whole):
    path = tmp_path / "run.csv"
    whole[0].save(path)
    head, *rows = path.read_text().splitlines()
    assert head == "step,epoch,loss,norm,lr,validation"
    assert [bool(row.split(",")[5]) for row in rows] == ([False] * 4 + [True]) * 3


def test_a_history_of_nothing_and_of_odd_numbers(tmp_path):
    assert repr(History()) == "History(0 steps, 0 epochs)"
    odd = History([1], [1], [5e-324], [np.inf], [0.1 + 0.2], {1: 1e300})
    for ending in (".csv", ".json"):
        odd.save(tmp_path / f"odd{ending}")
        assert History.load(tmp_path / f"odd{ending}") == odd
        History().save(tmp_path / f"none{ending}")
        assert History.load(tmp_path / f"none{ending}") == History()


def test_other_files_are_no_histories(tmp_path):
    with pytest.raises(ValueError, match=r"as \.csv or \.json, not as 'a.txt'"):
        History().save(tmp_path / "a.txt")
    for name, text in [
        ("a.csv", ""), ("b.csv", "x,y\n1,2\n"), ("c.json", "{}"), ("d.json", "[1"),
        ("e.csv", "step,epoch,loss,norm,lr,validation\n1,1,0.5\n"), ("f.json", "3"),
    ]:  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match="not a history"):
            History.load(tmp_path / name)
    numbers = '{"step": [1], "epoch": [1], "loss": [1], "norm": [1], "lr": [1], "validation": '
    for name, content in [
        ("a.json", b"\xff\xfe{"), ("b.json", b"[" * 100_000), ("c.json", numbers.encode() + b"[]}"),
        ("d.json", numbers.replace("[1]", "[1e400]", 1).encode() + b"{}}"), ("a.csv", b"\xff\xfe{"),
        ("b.csv", b"x" * 200_000),
    ]:  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="not a history"):
            History.load(tmp_path / name)
    with pytest.raises(OSError, match="cannot save"):
        History().save(tmp_path / "missing" / "a.csv")


# --- the bar -----------------------------------------------------------------------------------


def test_the_bar_is_silent_away_from_a_terminal(capfd):
    Setup().fit()
    Setup().fit(progress=False)
    assert capfd.readouterr() == ("", "")


def test_the_bar_shows_loss_norm_and_items_per_second(capfd):
    Setup().fit(progress=True)
    text = capfd.readouterr().err
    for part in ("epoch 3/3", "15/15", "loss ", "norm ", " items/s", "validation "):
        assert part in text


def test_on_a_terminal_the_bar_shows_by_itself(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    Setup().fit()
    assert "items/s" in capfd.readouterr().err


def test_tqdm_is_imported_only_for_a_bar():
    code = (
        "import sys; from tinygrad_rnn import nn, optim, train; m = nn.Linear(1, 1);"
        "train.fit(m, [[[1.0]]], lambda m, b, s: (m(b).sum(), None),"
        "optim.SGD(m.parameters(), lr=0.1), epochs=1); assert 'tqdm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- it learns ---------------------------------------------------------------------------------


def test_least_squares_are_found():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3))
    y = x @ [[1.0], [-2.0], [0.5]] + 3.0
    model = nn.Linear(3, 1, dtype=np.float64, rng=0)
    history = fit(
        model, data.batches(x, y, batch_size=16, rng=0),
        lambda m, batch, s: (mse_loss(m(batch[0]), batch[1]), None),
        optim.Adam(model.parameters(), lr=optim.cosine(0.3, steps=400)), epochs=100,
    )  # fmt: skip
    assert model.W.data.ravel() == pytest.approx([1.0, -2.0, 0.5], abs=1e-3)
    assert model.b.data == pytest.approx([3.0], abs=1e-3)
    means = [np.mean(history.loss[k : k + 100]) for k in range(0, 400, 100)]
    assert all(b < a for a, b in pairwise(means))
