"""The character language model: it learns, stops and goes on, and needs no program ``dot``."""

import os
import re
import signal

import numpy as np
import pytest

from examples import char_lm
from tinygrad_rnn import archive, data, nn, train
from tinygrad_rnn.compiler import Compiled, CompileWarning, numba_backend
from tinygrad_rnn.train import History

BACKEND = "numba" if numba_backend.available() else "NumPy"


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TINYGRAD_RNN_CACHE", str(tmp_path_factory.getbasetemp() / "kernels"))


def run(tmp_path, capsys, *more, name="out"):
    """Return the exit status, the lines that were printed, and the result."""
    status = char_lm.main([*char_lm.SMALL, f"--out={tmp_path / name}", *more])
    lines = capsys.readouterr().out.splitlines()
    return status, lines, dict(re.findall(r"(\S+)=(\S+)", lines[-1]))


def test_it_beats_counting_characters_and_reports(tmp_path, capsys):
    status, lines, result = run(tmp_path, capsys)
    assert status == 0
    assert lines[-1].startswith("RESULT ")
    assert list(result) == ["val_nats_per_char", "unigram", "bigram", "seconds"]
    assert float(result["val_nats_per_char"]) < float(result["unigram"]) - 0.1
    text = "\n".join(lines)
    for part in (
        "6,000 characters",
        "sha256 ",
        "T ln V = ",
        "epoch 2: validation ",
        "sample after",
    ):
        assert part in text
    history = History.load(tmp_path / "out" / "char_lm.csv")
    assert f"{history.validation[2]:.4g}" == result["val_nats_per_char"]
    assert (tmp_path / "out" / "char_lm.dot").read_text().startswith("// ")


def test_the_untrained_model_knows_nothing(tmp_path, capsys):
    _, lines, _ = run(tmp_path, capsys, "--epochs=1")
    found = next(
        re.search(r"untrained: (\S+) nats.* = (\S+)", line) for line in lines if "untr" in line
    )
    assert float(found[1]) == pytest.approx(float(found[2]), rel=0.05)


def test_quiet_prints_the_result_alone(tmp_path, capsys):
    assert len(run(tmp_path, capsys, "--quiet", "--epochs=1")[1]) == 1


def test_ctrl_c_and_resume_give_the_result_of_one_go(tmp_path, capsys, monkeypatch):
    _, _, expected = run(tmp_path, capsys, name="whole")
    count = [0]

    def pressed(model, batch, state):
        count[0] += 1
        if count[0] == 200:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch, state)

    loss = char_lm.loss
    monkeypatch.setattr(char_lm, "loss", pressed)
    status, lines, _ = run(tmp_path, capsys)
    assert status == 130
    assert re.match(r"stopped after step \d+; to go on: python .*--out=.* --resume$", lines[-1])
    monkeypatch.setattr(char_lm, "loss", loss)
    status, _, result = run(tmp_path, capsys, "--resume")
    assert status == 0
    expected.pop("seconds"), result.pop("seconds")
    assert result == expected
    (one, _), (other, _) = (
        archive.read(tmp_path / name / "char_lm.npz") for name in ("whole", "out")
    )
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in other.items()}


@pytest.mark.parametrize("stage", ["count_baselines", "sample", "draw"])
def test_ctrl_c_outside_training_ends_in_a_line(tmp_path, capsys, monkeypatch, stage):
    def pressed(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(char_lm, stage, pressed)
    status, lines, _ = run(tmp_path, capsys, "--epochs=1")
    assert status == 130
    assert lines[-1].startswith("stopped outside training; to go on")


@pytest.mark.parametrize(
    "wrong", ["--temperature=0", "--temperature=-1", "--temperature=nan", "--sample=-1"]
)
def test_numbers_for_the_sample_are_checked_before_training(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, capsys, wrong)
    assert stop.value.code == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_settings_is_said_in_a_line(tmp_path, capsys):
    run(tmp_path, capsys, "--epochs=1")
    with pytest.raises(SystemExit, match=r"cannot resume: .*--hidden 24"):
        run(tmp_path, capsys, "--resume", "--hidden=12")


def test_without_the_program_dot_it_finishes_and_keeps_the_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, lines, _ = run(tmp_path, capsys, "--epochs=1")
    assert status == 0
    assert any("char_lm.dot, not char_lm.svg" in line for line in lines)
    assert (tmp_path / "out" / "char_lm.dot").exists()
    assert not (tmp_path / "out" / "char_lm.svg").exists()


def test_no_character_is_seen_before_its_turn():
    model = char_lm.CharLM(5, 3, 4, rng=0)
    x = np.arange(12).reshape(6, 2) % 5
    y = x.copy()
    y[4:] += 1
    a, b = (model(ids % 5)[0].numpy() for ids in (x, y))
    assert (a[:4] == b[:4]).all()
    assert (a[4:] != b[4:]).any()


def test_the_baselines_are_the_counted_entropies():
    ids = np.array([0, 1] * 50)
    held_out = data.bptt_batches(np.array([0, 1, 0, 1, 0]), batch_size=1, steps=3)
    unigram, bigram = char_lm.count_baselines(ids, held_out, 2)
    assert unigram == pytest.approx(np.log(2))
    expected = -(2 * np.log(51 / 52) + 2 * np.log(50 / 51)) / 4
    assert bigram == pytest.approx(expected)


def test_every_held_out_character_but_the_first_few_counts():
    held_out = data.bptt_batches(np.zeros(46_505, int), batch_size=8, steps=100)
    assert sum(train.count_items(batch) for batch in held_out) >= 46_505 - 8


def losses(folder):
    return History.load(folder / "char_lm.csv").loss


@pytest.mark.usefixtures("own_cache")
def test_compiled_it_learns_the_same_to_rounding(tmp_path, capsys, monkeypatch):
    layers = []

    def seen(model, batch, state):
        layers.append(isinstance(model.lstm, Compiled))
        return loss(model, batch, state)

    loss = char_lm.loss
    monkeypatch.setattr(char_lm, "loss", seen)
    run(tmp_path, capsys, "--epochs=1", name="plain")
    assert not any(layers)
    layers.clear()
    status, lines, _ = run(tmp_path, capsys, "--epochs=1", "--compile", name="fast")
    assert status == 0
    assert [line for line in lines if line.startswith("compile: ")] == [
        f"compile: lstm: back end: {BACKEND}"
    ]
    plain, fast = losses(tmp_path / "plain"), losses(tmp_path / "fast")
    assert layers.count(True) > len(fast) > 100  # and the validation
    np.testing.assert_allclose(fast, plain, rtol=1e-5)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("flags", [("--compile", "--quiet"), ("--quiet", "--compile")])
def test_a_checkpoint_of_either_kind_is_gone_on_from_by_the_other(
    tmp_path, capsys, monkeypatch, flags
):
    run(tmp_path, capsys, name="whole")
    first, then = flags
    count = [0]

    def pressed(model, batch, state):
        count[0] += 1
        if count[0] == 200:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(model, batch, state)

    loss = char_lm.loss
    monkeypatch.setattr(char_lm, "loss", pressed)
    assert run(tmp_path, capsys, first)[0] == 130
    monkeypatch.setattr(char_lm, "loss", loss)
    assert run(tmp_path, capsys, then, "--resume")[0] == 0
    np.testing.assert_allclose(losses(tmp_path / "out"), losses(tmp_path / "whole"), rtol=1e-5)
    whole, out = (archive.read(tmp_path / name / "char_lm.npz")[0] for name in ("whole", "out"))
    assert list(out) == list(whole)


@pytest.mark.usefixtures("own_cache")
def test_the_twin_shares_its_parameters_and_writes_the_same():
    text = "the cat sat on the mat"
    vocabulary = data.Vocabulary(text)
    model = char_lm.CharLM(len(vocabulary), 3, 4, rng=0)
    ids = vocabulary.encode(text)[:, None]
    twin, report = char_lm.compiled(model, (ids[:-1], ids[1:]))
    assert report == [f"compile: lstm: back end: {BACKEND}"]
    assert not isinstance(model.lstm, Compiled)
    assert all(p is q for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    plain, fast = (
        char_lm.sample(m, vocabulary, "the", 50, 1.0, np.random.default_rng(0))
        for m in (model, twin)
    )
    assert len(plain) == 53
    assert fast == plain


@pytest.mark.usefixtures("own_cache")
def test_what_runs_unrolled_is_told_with_its_reason(tmp_path, capsys, monkeypatch):
    def peeking(self, x, state):
        x.numpy()
        return step(self, x, state)

    step = nn.LSTMCell.step
    monkeypatch.setattr(nn.LSTMCell, "step", peeking)
    with pytest.warns(CompileWarning):
        status, lines, _ = run(tmp_path, capsys, "--epochs=1", "--compile")
    assert status == 0
    [told] = [line for line in lines if line.startswith("compile: ")]
    assert re.match(r"compile: lstm: L0\.fwd: runs unrolled: .*test_char_lm\.py:\d+", told)
