"""Every example runs with small settings and ends in a RESULT line."""

import importlib.util
import re
import signal
import sys
from pathlib import Path

import pytest

from tinygrad_rnn.train import History
from tinygrad_rnn.train.run import Run

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(f.stem for f in FOLDER.glob("*.py") if f.stem != "common")


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def result(text):
    """Return the keys and values of the last line."""
    last = text.strip().splitlines()[-1]
    assert last.startswith("RESULT ")
    return {k: float(v) for k, v in re.findall(r"(\w+)=(\S+)", last)}


def run(name, tmp_path, *more):
    """Run an example with its small settings; return its exit status."""
    example = load(name)
    return example.main([*example.SMALL, "--out", str(tmp_path), *more])


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0
    assert "--seed" in capsys.readouterr().out


RESULTS = {}  # what a run with small settings gives, by example


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_small_run_ends_in_a_result_and_a_quiet_one_prints_it_alone(name, tmp_path, capsys):
    assert run(name, tmp_path / "loud") == 0
    loud = result(capsys.readouterr().out)
    assert list(loud)[-1] == "seconds"
    assert run(name, tmp_path / "quiet", "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    RESULTS[name] = {**result(lines[0]), "seconds": 0}
    assert RESULTS[name] == {**loud, "seconds": 0}


TRAINED = [name for name in EXAMPLES if "session.fit(" in (FOLDER / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", TRAINED)
def test_ctrl_c_leaves_a_checkpoint_and_a_history_and_resume_goes_on(
    name, tmp_path, capsys, monkeypatch
):
    if name not in RESULTS:
        run(name, tmp_path / "whole", "--quiet")
        RESULTS[name] = {**result(capsys.readouterr().out), "seconds": 0}
    step, steps = Run.step, []

    def interrupted(self, batch):
        steps.append(step(self, batch))
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return steps[-1]

    monkeypatch.setattr(Run, "step", interrupted)
    assert run(name, tmp_path, "--quiet") == 130
    assert f"python examples/{name}.py" in capsys.readouterr().out
    [table] = tmp_path.glob("*.csv")
    assert len(History.load(table).step) == 2
    assert table.with_suffix(".npz").exists()
    assert run(name, tmp_path, "--quiet", "--resume") == 0
    assert {**result(capsys.readouterr().out), "seconds": 0} == RESULTS[name]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bptt_by_hand", ["--text", "aa"]),
        ("bptt_by_hand", ["--text", ""]),
        ("custom_cell", ["--steps", "1"]),
        ("adding", ["--steps", "1"]),
        ("adding", ["--lr", "-1"]),
        ("adding", ["--lr", "nan"]),
        ("adding", ["--seed", "-1"]),
        ("addition", ["--samples", "5"]),
        ("caption_digits", ["--held-out", "1790"]),
        ("digits_mlp", ["--samples", "99"]),
        ("digits_rows", ["--samples", "1798"]),
        ("frames", ["--steps", "1"]),
        ("label_source", ["--limit-chars", "50"]),
        ("sentiment", ["--samples", "1000000"]),
        ("series", ["--steps", "31"]),
        ("series", ["--samples", "9"]),
        ("translate_dates", ["--samples", "4"]),
    ],
)
def test_arguments_without_a_problem_to_solve_are_refused(name, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(wrong)
    assert stop.value.code == 2
    assert f"error: {wrong[0]}" in capsys.readouterr().err


def test_bptt_by_hand_and_by_tape_agree(tmp_path, capsys):
    load("bptt_by_hand").main(["--out", str(tmp_path)])
    assert result(capsys.readouterr().out)["difference"] <= 1e-12


def test_the_custom_cell_learns(tmp_path, capsys):
    args = ["--samples", "3000", "--epochs", "4", "--steps", "4", "--hidden", "16", "--seed", "1"]
    load("custom_cell").main([*args, "--out", str(tmp_path)])
    found = result(capsys.readouterr().out)
    assert found["mse"] < found["baseline"] / 3


@pytest.mark.parametrize("name", ["caption_digits", "digits_mlp", "digits_rows"])
def test_without_scikit_learn_the_digits_say_what_to_install(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[examples\]'"):
        load(name).main(["--out", str(tmp_path)])


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"--out .*file/out: Not a directory"):
        run("custom_cell", tmp_path / "file" / "out")


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path, capsys):
    run("custom_cell", tmp_path, "--quiet")
    first = capsys.readouterr().out.split(" seconds")[0]
    with pytest.raises(SystemExit, match=r"cannot resume: .* was made with --seed 0: say so again"):
        run("custom_cell", tmp_path, "--seed", "4", "--resume")
    capsys.readouterr()
    assert run("custom_cell", tmp_path, "--quiet", "--resume") == 0
    assert capsys.readouterr().out.split(" seconds")[0] == first
