"""Every example runs with small settings and ends in a RESULT line."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SMALL = {
    "bptt_by_hand": ["--hidden", "5"],
    "custom_cell": ["--samples", "200", "--epochs", "1", "--hidden", "8", "--steps", "6"],
    "char_lm": None,  # tests/test_char_lm.py runs it
}


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


def test_every_example_is_here():
    assert {f.stem for f in FOLDER.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_help_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(["--help"])
    assert stop.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, args in SMALL.items() if args])
def test_a_small_run_ends_in_a_result(name, capsys):
    load(name).main(SMALL[name])
    assert result(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bptt_by_hand", ["--text", "aa"]),
        ("bptt_by_hand", ["--text", ""]),
        ("custom_cell", ["--steps", "1"]),
    ],
)
def test_arguments_without_a_problem_to_solve_are_refused(name, wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        load(name).main(wrong)
    assert stop.value.code == 2
    assert f"error: {wrong[0]}" in capsys.readouterr().err


def test_bptt_by_hand_and_by_tape_agree(capsys):
    load("bptt_by_hand").main([])
    assert result(capsys.readouterr().out)["difference"] <= 1e-12


def test_the_custom_cell_learns(capsys):
    args = ["--samples", "3000", "--epochs", "4", "--steps", "4", "--hidden", "16", "--seed", "1"]
    load("custom_cell").main(args)
    found = result(capsys.readouterr().out)
    assert found["mse"] < found["baseline"] / 3
