"""The pytest plugin: every option, the table, the file, the mutants, and what it leaves alone."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import settings

from tinygrad_rnn.op import OPS
from tinygrad_rnn.testing import checks, nodes, options, oracles, plugin, profiles, report, tally

pytest_plugins = ["pytester"]

HEAD = """
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hst
from tinygrad_rnn import Tensor, grad, nn, ops, testing
from tinygrad_rnn.op import primitive
from tinygrad_rnn.testing import options, profiles
from tinygrad_rnn.testing import strategies as st
"""

CHECK = """
def test_square():
    testing.check_grad(lambda x: x * x, np.array([1.0, 2.0]))
"""

CUBE = """
@primitive("()->()", "x^3")
def cube(x):
    return x * x * x
cube.vjp(lambda g, y, x: g * 3 * x * x)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a function that runs a test file with options, in this process."""
    monkeypatch.delenv("HYPOTHESIS_PROFILE", raising=False)
    monkeypatch.setattr(profiles, "chosen", None)  # by the run that this test is part of
    before = dict(OPS)

    def run(text, *given, **files):
        pytester.makepyfile(test_it=HEAD + text, **files)
        for name in set(OPS) - set(before):
            del OPS[name]
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *given)

    yield run
    for name in set(OPS) - set(before):
        del OPS[name]


# --- what it leaves alone ------------------------------------------------------------------------


def test_a_run_without_checks_is_silent_and_loads_nothing(tmp_path):
    file = tmp_path / "test_other.py"
    file.write_text("def test_nothing():\n    pass\n")
    code = (
        "import sys, pytest\n"
        f"rc = pytest.main(['-q', '-p', 'no:hypothesispytest', {str(file)!r}])\n"
        "names = 'hypothesis', 'torch', 'tinygrad_rnn.testing.suites'\n"
        "print(*[n for n in names if n in sys.modules])\n"
        "sys.exit(rc or 10 * any(n in sys.modules for n in names))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "gradient" not in found.stdout


def test_a_run_gives_everything_back(run):
    def state():
        return (
            dataclasses.replace(options.current), profiles.chosen, report.LISTENERS[:],
            settings.get_current_profile_name(), settings.default.max_examples, nodes.shrinking,
        )  # fmt: skip

    before = state()
    found = run(
        CHECK, "--grad-profile=thorough", "--grad-seed=3", "--grad-method=ridders", "--grad-mutate"
    )
    found.assert_outcomes(passed=1)
    assert state() == before
    run(CHECK, "--grad-profile=thorough", "--grad-report=nowhere/x.json")
    assert state() == before


def test_no_check_is_said_where_only_the_file_was_asked_for(run, pytester):
    found = run("def test_nothing(): pass", "--grad-report=r.json")
    assert "checked" not in found.stdout.str()
    assert json.loads((pytester.path / "r.json").read_text())["checked"] == {}


# --- profiles ------------------------------------------------------------------------------------

PROFILE = """
def test_profile():
    print("PROFILE", profiles.name(), settings.default.max_examples, settings.default.derandomize,
          settings.default.deadline, settings.default.database is None)
    assert 0
"""

OWN = """
from hypothesis import settings
settings.register_profile("dev", max_examples=7, deadline=None)
settings.load_profile("dev")
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("dev", "PROFILE dev 20 False None False"),
        ("ci", "PROFILE ci 200 True None True"),
        ("thorough", "PROFILE thorough 2000 False None False"),
    ],
)
def test_the_profile_of_the_option(run, given, words):
    found = run(PROFILE, f"--grad-profile={given}", conftest=OWN)
    assert words in found.stdout.str()
    assert f"gradient checks: profile {given}" in found.stdout.str()


def test_without_the_option_the_profiles_of_the_project_stay(run):
    assert "PROFILE dev 7 False" in run(PROFILE, conftest=OWN).stdout.str()


def test_the_variable_of_the_environment_chooses_for_the_kit(run, monkeypatch):
    monkeypatch.setenv("HYPOTHESIS_PROFILE", "ci")
    assert "PROFILE ci 7 False" in run(PROFILE, conftest=OWN).stdout.str()
    monkeypatch.setenv("HYPOTHESIS_PROFILE", "nightly")  # of somebody else
    assert "PROFILE dev 7 False" in run(PROFILE, conftest=OWN).stdout.str()


def test_the_profile_of_the_ini_file(run, pytester, monkeypatch):
    pytester.makeini("[pytest]\ngrad_profile = thorough\n")
    assert "PROFILE thorough 2000" in run(PROFILE).stdout.str()
    monkeypatch.setenv("HYPOTHESIS_PROFILE", "ci")
    assert "PROFILE ci 200 True" in run(PROFILE).stdout.str()
    assert "PROFILE dev 20" in run(PROFILE, "--grad-profile=dev").stdout.str()


def test_the_option_of_hypothesis_has_the_last_word(run):
    found = run(PROFILE, "--grad-profile=ci", "--hypothesis-profile=dev")
    assert "PROFILE ci 20 False" in found.stdout.str()


def test_profiles_by_name():
    assert profiles.profile("ci").print_blob
    assert profiles.profile("dev").deadline is None
    with pytest.raises(ValueError, match="no profile 'fast': there are dev, ci, thorough"):
        profiles.profile("fast")


# --- seed, method, oracle ------------------------------------------------------------------------


def test_seed_and_method_reach_the_checks(run):
    text = """
def test_seed(gradcheck):
    for check in (gradcheck, testing.check_grad):
        x = np.array([1.0, 2.0])
        found = check(lambda x: x * x, x)
        assert [f.got for f in found.findings] == [
            f.got for f in testing.check_grad(lambda x: x * x, x, seed=5).findings
        ]
        assert found.method == "ridders"
        assert check(lambda x: x * x, x, method="complex").method == "complex step"
"""
    run(text, "--grad-seed=5", "--grad-method=ridders").assert_outcomes(passed=1)
    run(text, "--grad-seed=6", "--grad-method=ridders").assert_outcomes(failed=1)
    run(text, "--grad-seed=5").assert_outcomes(failed=1)


@pytest.fixture
def oracle(monkeypatch):
    """Put an oracle in the place of PyTorch; return what it was asked and what it answers."""
    asked, answer = [], {}

    def check_against(name, module, *inputs, state=None, lengths=None):
        asked.append((name, type(next(module.cells())[2]).__name__))
        if answer:
            raise report.GradientError(answer["text"], verdict=answer["verdict"])

    monkeypatch.setattr(oracles, "check_against", check_against)
    monkeypatch.setattr(plugin, "_installed", lambda name: name == "torch")
    return asked, answer


LAYER = """
plain = dict(layers=1, bidirectional=False, lengths=False, dtype="float64", long_T=0)
@testing.gradtest(st.rnn_configs(cells=[nn.RNNCell], T=1, **plain), properties="numeric")
def test_rnn(module): ...
"""


def test_the_oracle_is_asked_about_every_configuration(run, oracle):
    asked, answer = oracle
    run(LAYER, "--grad-oracle=torch").assert_outcomes(passed=1)
    assert len(asked) > 20
    assert set(asked) == {("torch", "RNNCell")}
    answer.update(text="the values differ", verdict=report.Verdict.WRONG)
    found = run(LAYER, "--grad-oracle=torch")
    found.assert_outcomes(failed=1)
    assert "the values differ" in found.stdout.str()


def test_a_layer_that_the_oracle_does_not_know_is_said_once(run, oracle):
    oracle[1].update(text="it runs a RNNCell", verdict=report.Verdict.UNRELIABLE)
    found = run(LAYER, "--grad-oracle=torch")
    found.assert_outcomes(passed=1)
    assert found.stdout.str().count("not compared: it runs a RNNCell") == 1


# --- bad values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--grad-profile=fast", "*invalid choice: 'fast' (choose from *dev*ci*thorough*"),
        ("--grad-seed=one", "*'one' is no seed: a whole number from 0 on"),
        ("--grad-seed=-1", "*'-1' is no seed: a whole number from 0 on"),
        ("--grad-method=exactly", "*invalid choice: 'exactly'*"),
        ("--grad-oracle=keras", "*invalid choice: 'keras'*"),
        ("--grad-oracle=jax", "*--grad-oracle=jax: jax is not installed"),
        ("--grad-report=no/where.json", "*--grad-report=no/where.json: there is no folder *no"),
        ("--grad-report=.", "*--grad-report=.: this is a folder; name a file in it"),
        ("--grad-mutate=cubes", "*--grad-mutate=cubes: no op of this name; the tests declare*"),
    ],
)
def test_bad_values_are_errors_in_words(run, oracle, given, words):
    found = run(CHECK, given)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([words])
    assert "Traceback" not in found.stderr.str() + found.stdout.str()


def test_a_profile_without_hypothesis_is_an_error_in_words(run, oracle):
    found = run(CHECK, "--grad-profile=ci")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines(["*profile ci: hypothesis is not installed"])


def test_a_bad_profile_in_the_ini_file(run, pytester):
    pytester.makeini("[pytest]\ngrad_profile = fast\n")
    run(CHECK).stderr.fnmatch_lines(["*grad_profile = fast: no such profile; there are dev, ci*"])


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("order=3, rotl=1", "*test_square: gradcheck has no setting 'rotl'; there are wrt,*"),
        ("2", "*test_square: gradcheck takes keywords, as gradcheck(order=2); got (2,)"),
    ],
)
def test_a_bad_marker_is_an_error_in_words(run, mark, words):
    found = run(f"@pytest.mark.gradcheck({mark})" + CHECK)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([words])


# --- marker and fixture --------------------------------------------------------------------------


def test_the_marker_sets_the_fixture_and_the_numeric_check(run, monkeypatch):
    orders = []
    real = checks.check_module
    monkeypatch.setattr(
        checks, "check_module", lambda *a, **k: (orders.append(k.pop("order", 1)), real(*a, **k))[1]
    )
    text = """
@pytest.mark.gradcheck(order=2)
def test_square(gradcheck):
    twice = gradcheck(lambda x: x * x, np.array([1.0]))
    once = gradcheck(lambda x: x * x, np.array([1.0]), order=1)
    assert len(twice.findings) > len(once.findings)

plain = dict(layers=1, bidirectional=False, lengths=False, dtype="float64", long_T=0)
@pytest.mark.gradcheck(order=2)
@testing.gradtest(st.rnn_configs(cells=[nn.RNNCell], T=1, **plain), properties="numeric")
def test_rnn(module): ...
"""
    run(text, "--strict-markers").assert_outcomes(passed=2)
    assert set(orders) == {2}


# --- the table and the file ----------------------------------------------------------------------


def test_the_table_and_the_file(run, pytester):
    text = (
        CHECK
        + LAYER
        + """
def test_wrong():
    testing.check_grad(lambda x: x.detach() * 2, np.array([1.0]))
"""
    )
    found = run(text, "--grad-report=r.json", "--grad-seed=1")
    found.assert_outcomes(passed=2, failed=1)
    found.stdout.fnmatch_lines(
        [
            "*= gradient checks (profile dev) =*",
            "checked *examples *comparisons *error/tolerance *inconclusive",
            "RNNCell *",
            "rules run in backward: *matmul*",
            "rules of the package never run in backward: *exp*",
            "configurations: *of them *T==1 *",
        ]
    )
    content = json.loads((pytester.path / "r.json").read_text())
    assert (content["profile"], content["seed"], content["method"]) == ("dev", 1, "auto")
    assert content["checked"]["RNNCell"]["examples"] == 26
    assert 0 < content["checked"]["RNNCell"]["worst"] < 1
    assert content["configurations"]["T==1"] == 21  # all that are drawn, and a corner
    assert content["configurations"]["T>=24"] == 1  # the corner
    assert content["ops"]["matmul"] == 26
    assert "matmul" not in content["never_run"]
    assert "exp" in content["never_run"]
    (failure,) = content["failures"]
    assert failure["test"] == "test_it.py::test_wrong"
    assert failure["message"]


def test_inconclusive_comparisons_are_counted():
    unsure = report.Finding("y", "x", 1, 1, 1, 1, "ridders", 1, report.Verdict.UNRELIABLE)
    counts = tally.Tally()
    counts(report.GradReport("f", [unsure, unsure]))
    assert counts.as_dict()["inconclusive"] == 2
    assert "INCONCLUSIVE: 2 comparisons, the reference was not reliable" in list(counts.table())


def test_infinite_ratios_are_json(tmp_path):
    tally.write(tmp_path / "r.json", {"worst": float("inf"), "all": (1, float("nan"))})
    assert json.loads((tmp_path / "r.json").read_text()) == {"worst": "inf", "all": [1, "nan"]}


def test_a_failing_check_shows_the_line_of_the_test_and_none_of_the_kit(run):
    found = run("\ndef test_wrong():\n    testing.check_grad(lambda x: x.detach() * 2, [1.0])\n")
    found.assert_outcomes(failed=1)
    text = found.stdout.str()
    assert ">       testing.check_grad(lambda x: x.detach() * 2, [1.0])" in text
    assert "E       tinygrad_rnn.testing.report.GradientError: backward of <lambda> is" in text
    assert "/testing/" not in text
    assert "- GradientError: " in text


@pytest.mark.parametrize("where", ["table", "__call__", "as_dict"])
def test_a_fault_of_the_plugin_breaks_no_run(run, monkeypatch, where):
    def broken(*args):
        raise RuntimeError("out of ink")

    monkeypatch.setattr(tally.Tally, where, broken)
    found = run(CHECK, "--grad-report=r.json")
    found.assert_outcomes(passed=1)
    assert found.ret == 0
    found.stdout.fnmatch_lines(["*: RuntimeError: out of ink"])


# --- mutants -------------------------------------------------------------------------------------

WEAK = """
def test_sign():
    x = Tensor(2.0, requires_grad=True)
    assert grad(cube(x), x) > 0
"""

STRONG = """
def test_cube():
    testing.check_grad(cube, np.array([1.5, 2.5]))
"""


def test_mutants_of_the_ops_that_the_tests_declare(run):
    found = run(CUBE + STRONG + WEAK + CHECK, "--grad-mutate")
    found.assert_outcomes(passed=3)
    text = found.stdout.str()
    assert "mutants of cube: 10 of 10 killed by 2 tests" in text
    assert "mutants of mul" not in text
    assert "SURVIVED" not in text


def test_survivors_are_reported_with_their_line(run, pytester):
    found = run(CUBE + WEAK, "--grad-mutate=cube", "--grad-report=r.json")
    found.assert_outcomes(passed=1)
    line = 1 + (HEAD + CUBE).strip("\n").splitlines().index(CUBE.strip().splitlines()[-1])
    expected = f"test_it.py:{line}  cube.rules[0]: factor: g * 3 * x * x -> 2 * (g * 3 * x * x)"
    assert f"  SURVIVED  {expected}" in found.stdout.str()
    of_cube = json.loads((pytester.path / "r.json").read_text())["mutation"]["ops"]["cube"]
    assert expected in of_cube["survivors"]
    assert of_cube["mutants"] == of_cube["killed"] + len(of_cube["survivors"]) == 10


def test_mutants_of_an_op_of_the_package(run):
    rules = OPS["tanh"].rules
    found = run(
        "def test_tanh():\n    testing.check_grad(ops.tanh, np.array([0.5]))\n",
        "--grad-mutate=tanh",
    )
    killed = found.stdout.str().split("mutants of tanh: ")[1].split(" killed")[0]
    assert len(set(killed.split(" of "))) == 1
    assert OPS["tanh"].rules is rules


def test_a_mutated_suite_does_not_shrink(run, monkeypatch):
    shrunk = []
    real = nodes._neighbours
    monkeypatch.setattr(nodes, "_neighbours", lambda cfg: (shrunk.append(cfg), real(cfg))[1])
    text = (
        CUBE
        + """
class Cubic(nn.RNNCell):
    def step(self, x, h):
        h = cube(self.affine(x, h) * 0.125)
        return h, h

plain = dict(layers=1, bidirectional=False, lengths=False, dtype="float64", long_T=0)
@testing.gradtest(st.rnn_configs(cells=[Cubic], T=1, **plain), properties="numeric")
def test_cubic(module): ...
"""
    )
    found = run(text, "--grad-mutate")
    assert "mutants of cube: 10 of 10 killed by 1 test\n" in found.stdout.str()
    assert not shrunk
    assert nodes.shrinking


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CHECK, "no mutants were tried: the tests declare no op; name one, as --grad-mutate=tanh"),
        (CUBE + CHECK, "mutants of cube: no test has run its rules"),
        (
            CUBE + STRONG + "\ndef test_broken(): assert 0\n",
            "no mutants were tried: the tests must pass first",
        ),
        (
            CUBE + "exec('cube.vjp(lambda g, y, x: g * 3 * x * x)')\n" + STRONG,
            "mutants of cube: cube.rules[[]0] cannot be mutated: *",
        ),
    ],
)
def test_why_no_mutants_were_tried(run, text, words):
    run(text, "--grad-mutate").stdout.fnmatch_lines([words])


def test_a_path_after_the_option_is_no_op(run):
    found = run(CUBE + STRONG, "--grad-mutate", "test_it.py")
    assert "mutants of cube: 10 of 10" in found.stdout.str()
