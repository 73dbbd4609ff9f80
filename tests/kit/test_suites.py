"""gradtest and CellSuite: the corners first, shrinking, skips with reasons, errors in words."""

import re

import pytest
from hypothesis import strategies as st

from tinygrad_rnn import nn, testing
from tinygrad_rnn.testing import GradientError, RNNConfig, Verdict, nodes, profiles, strategies
from tinygrad_rnn.testing.suites import CellSuite, gradtest

pytest_plugins = ["pytester"]


class Plain(nn.RNNCell):
    """A cell of the tests."""


class Detached(nn.RNNCell):
    """Wrong for two units: no gradient passes through the state."""

    def step(self, x, h):
        return super().step(x, h.detach() if h.shape[1] == 2 else h)


PLAIN = strategies.rnn_configs(cells=[Plain], long_T=0)
BIG = RNNConfig(Plain, T=5, N=3, D=2, H=4, layers=2, bidirectional=True, lengths=(5, 2, 0))


def fails_where(wrong, verdict=Verdict.WRONG):
    """Return a property that is violated where `wrong(cfg)`, and the configurations it saw."""
    seen = []

    def prop(cfg):
        seen.append(cfg)
        if wrong(cfg):
            raise GradientError("backward of Recurrent is wrong", verdict=verdict)

    return prop, seen


def run(prop, corners=(), configs=PLAIN, name="numeric"):
    nodes.run(name, prop, list(corners), configs, "key", {})


# --- which configurations are tried, and in which order ------------------------------------------


@pytest.mark.parametrize("profile", profiles.EXAMPLES)
def test_the_corners_come_first_in_every_profile(profile, monkeypatch):
    monkeypatch.setattr(profiles, "chosen", profile)
    monkeypatch.setitem(profiles.EXAMPLES, profile, 7)
    corners = strategies.corners([Plain])
    prop, seen = fails_where(lambda cfg: False)
    run(prop, corners)
    assert seen[: len(corners)] == corners
    assert len(seen) == len(corners) + 7


def test_the_corners_are_those_of_the_cells_that_are_drawn():
    assert nodes.corners_in(PLAIN, "a test") == strategies.corners([Plain])
    both = strategies.rnn_configs(cells=[Plain, Detached])
    assert {cfg.cell for cfg in nodes.corners_in(both, "a test")} == {Plain, Detached}


def test_a_corner_that_the_strategy_cannot_draw_is_left_out():
    narrow = strategies.rnn_configs(
        cells=[Plain], T=(2, 4), layers=1, bidirectional=False, lengths=False, dtype="float64"
    )
    found = nodes.corners_in(narrow, "a test")
    assert len(found) >= 5
    assert all(cfg.T > 1 and cfg.lengths is None and cfg.dtype == "float64" for cfg in found)
    assert any(cfg.T == 64 for cfg in found)


def test_ci_draws_the_same_in_every_run(monkeypatch):
    monkeypatch.setattr(profiles, "chosen", "ci")
    monkeypatch.setitem(profiles.EXAMPLES, "ci", 10)
    runs = []
    for _ in range(2):
        prop, seen = fails_where(lambda cfg: False)
        run(prop)
        runs.append(seen)
    assert runs[0] == runs[1]


def test_a_seed_decides_what_is_drawn(monkeypatch):
    monkeypatch.setattr(profiles, "chosen", "dev")
    runs = []
    for seed in (1, 1, 2):
        monkeypatch.setattr(testing.options.current, "seed", seed)
        prop, seen = fails_where(lambda cfg: False)
        run(prop)
        runs.append(seen)
    assert runs[0] == runs[1] != runs[2]


def test_the_second_order_is_checked_on_small_configurations(monkeypatch):
    seen = []
    monkeypatch.setattr(
        nodes.checks, "check_module", lambda layer, x, **more: seen.append((x.shape, more))
    )
    nodes.check_of("second_order", {})(BIG)
    assert seen[0][0] == (2, 2, 2)
    assert seen[0][1]["order"] == 2
    assert seen[0][1]["lengths"] == [2, 2]


# --- shrinking ---------------------------------------------------------------------------------


def test_a_failing_corner_is_shrunk_and_printed_as_code():
    prop, _ = fails_where(lambda cfg: cfg.T >= 3 and cfg.H >= 2)
    messages = []
    for _ in range(2):
        with pytest.raises(GradientError) as caught:
            run(prop, [BIG])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "  smallest  RNNConfig(Plain, T=3, N=1, D=1, H=2)  " in messages[0]
    steps = re.search(rf"\(shrunk from {re.escape(repr(BIG))} in (\d+) steps\)", messages[0])
    assert int(steps[1]) >= 5  # of T, N, H, D, layers, directions, lengths
    assert messages[0].startswith("backward of Plain is wrong")
    assert caught.value.report.config == RNNConfig(Plain, T=3, N=1, D=1, H=2)


def test_a_drawn_configuration_is_shrunk_too():
    prop, _ = fails_where(lambda cfg: cfg.T >= 2)
    with pytest.raises(GradientError, match=r"smallest  RNNConfig\(Plain, T=2, N=1, D=1, H=1\)"):
        run(prop)


def test_both_sizes_of_a_square_cell_shrink_together():
    prop, _ = fails_where(lambda cfg: cfg.D == cfg.H >= 2)
    with pytest.raises(GradientError, match=r"RNNConfig\(Plain, T=1, N=1, D=2, H=2\)"):
        run(prop, [BIG.replace(D=4)])


def test_a_smallest_configuration_was_not_shrunk():
    prop, _ = fails_where(lambda cfg: True)
    with pytest.raises(GradientError) as caught:
        run(prop, [RNNConfig(Plain, T=1)])
    assert "shrunk" not in str(caught.value)


def test_shrinking_keeps_the_kind_of_the_failure():
    def prop(cfg):
        if cfg.H == 1:
            raise GradientError("the reference is at fault", verdict=Verdict.UNRELIABLE)
        if cfg.N == 1:
            raise ValueError("this cell wants a batch")
        raise GradientError("backward of Recurrent is wrong")

    with pytest.raises(GradientError, match=r"RNNConfig\(Plain, T=1, N=2, D=1, H=2\)"):
        run(prop, [BIG])


def test_what_is_tried_while_shrinking_is_not_counted(monkeypatch):
    heard = []
    monkeypatch.setattr(testing.report, "LISTENERS", [heard.append])

    def prop(cfg):
        testing.report.publish(testing.GradReport("f"))
        raise GradientError("wrong")

    with pytest.raises(GradientError):
        run(prop, [BIG])
    assert len(heard) == 1
    assert heard[0].config == BIG


@pytest.mark.parametrize("corners", [[BIG], []], ids=["corner", "drawn"])
def test_another_error_passes_shrunk_with_the_configuration_beside_it(corners):
    prop, _ = fails_where(lambda cfg: {}["bug"] if cfg.T >= 2 else False)
    with pytest.raises(KeyError, match="bug") as caught:
        run(prop, corners)
    (note,) = [n for n in caught.value.__notes__ if n.startswith("with ")]
    assert note.startswith("with RNNConfig(Plain, T=2, N=1, D=1, H=1)")


def test_a_cell_that_is_not_deterministic_is_told_so():
    calls = []

    def prop(cfg):
        calls.append(cfg)
        if len(calls) == 1:
            raise GradientError("backward of Recurrent is wrong")

    with pytest.raises(GradientError, match="not deterministic") as caught:
        run(prop)
    assert caught.value.verdict is Verdict.UNRELIABLE


@pytest.mark.parametrize("name", ["numeric", "second_order"])
def test_the_printed_lines_run_and_fail_again(name):
    prop = nodes.check_of(name, {})
    with pytest.raises(GradientError) as caught:
        run(prop, [RNNConfig(Detached, T=3, N=2, D=2, H=2)], name=name)
    text = str(caught.value)
    smallest = re.search(r"smallest  (RNNConfig\(.*?\))( |$)", text, re.MULTILINE)[1]
    assert smallest == "RNNConfig(Detached, T=1, N=1, D=1, H=2)"
    names = {"testing": testing, "RNNConfig": RNNConfig, "Detached": Detached}
    names["cfg"] = eval(smallest, names)
    line = re.search(r"rerun     (.*)", text)[1]
    with pytest.raises(GradientError, match="h0"):
        exec(line, names)


# --- what applies --------------------------------------------------------------------------------


def test_what_never_applied_is_skipped_with_its_reasons():
    with pytest.raises(pytest.skip.Exception, match="causality applied to no configuration: T is"):
        run(lambda cfg: "T is 1", [BIG], name="causality")


def test_what_applied_once_is_no_skip():
    run(lambda cfg: None if cfg == BIG else "T is 1", [BIG], name="causality")


def test_a_relation_is_asked_whether_it_applies():
    assert "T is 1" in nodes.check_of("carry", {})(RNNConfig(Plain, T=1))
    assert nodes.check_of("carry", {})(RNNConfig(Plain, T=2)) is None


def test_every_relation_of_layers_is_a_property():
    layers = {r.name for r in testing.relations.RELATIONS.values() if r.kind == "layer"}
    assert nodes.names() == (*nodes.FIXED, *[n for n in nodes.names() if n in layers])
    assert len(nodes.names()) == len(nodes.FIXED) + len(layers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"properties": ["numerics"]}, "no property 'numerics'; there are numeric, integrity"),
        ({"properties": "numerics"}, "no property 'numerics'"),
        ({"skip": {"causal": "no"}}, "no property 'causal'"),
        ({"skip": {"numeric": " "}}, r"skip\['numeric'\] needs the reason as text"),
        ({"skip": {"numeric": True}}, r"skip\['numeric'\] needs the reason as text"),
        ({"skip": {"adjoint": "no"}}, "'adjoint' is a relation of functions"),
    ],
)
def test_names_and_reasons_that_are_none_are_errors_in_words(arguments, words):
    with pytest.raises(ValueError, match=words):

        @gradtest(PLAIN, **arguments)
        def test_plain(module): ...

    with pytest.raises(ValueError, match=words):
        type("TestPlain", (CellSuite,), arguments)


@pytest.mark.parametrize("given", [None, [RNNConfig(Plain)], lambda module: None])
def test_gradtest_wants_a_strategy(given):
    with pytest.raises(TypeError, match="a strategy of RNNConfigs"):
        gradtest(given)


def test_a_strategy_of_something_else_is_an_error_in_words():
    with pytest.raises(TypeError, match="the strategy draws 0; it must draw RNNConfigs"):
        nodes.corners_in(st.just(0), "gradtest of test_plain")


# --- as pytest sees it ---------------------------------------------------------------------------

HEAD = """
import pytest
from tinygrad_rnn import nn, testing
from tinygrad_rnn.testing import strategies as st
from tests.kit.test_suites import Detached, Plain
configs = st.rnn_configs(cells=[Plain], long_T=0)
"""


def pytest_run(pytester, text, *options):
    pytester.makepyfile(test_it=HEAD + text)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rsf", *options)


def test_every_property_is_a_node(pytester):
    found = pytest_run(
        pytester,
        """
@testing.gradtest(configs, skip={"numeric": "measured elsewhere"})
def test_plain(module): ...

class TestPlain(testing.CellSuite):
    skip = {"batch": "normalises over it"}
    def make(self, cfg):
        return Plain(cfg.D, cfg.H)
""",
        "--collect-only",
        "-q",
    )
    lines = [line.split("::", 1)[1] for line in found.outlines if "::" in line]
    names = [*nodes.names()]
    assert lines[: len(names) + 1] == [f"test_plain[{n}]" for n in [*names, "body"]]
    assert lines[len(names) + 1 :] == [f"TestPlain::test_{n}" for n in names]


def test_bodies_and_skips(pytester):
    found = pytest_run(
        pytester,
        '''
@testing.gradtest(configs, properties=["integrity", "body"], skip={"integrity": "is for later"})
def test_empty(module):
    """Nothing to add."""

@testing.gradtest(configs, properties="body")
def test_full(module, cfg, tmp_path):
    out, _ = cfg.run(module)
    (tmp_path / "seen").write_text(repr(out.shape))

class TestMethods:
    @testing.gradtest(configs, properties="body")
    def test_method(self, module, tmp_path):
        assert isinstance(self, TestMethods)
        assert isinstance(module, nn.Recurrent)

@testing.gradtest(configs, properties="body")
def test_wrong(module, cfg):
    assert cfg.N == 1
''',
    )
    found.assert_outcomes(passed=2, skipped=2, failed=1)
    found.stdout.fnmatch_lines(
        ["SKIPPED * test_it.py:*: is for later", "SKIPPED * test_it.py:*: the body of *is empty"]
    )
    found.stdout.fnmatch_lines(
        [">*assert cfg.N == 1", "E*with RNNConfig(Plain, T=1, N=2, D=1, H=1)*"]
    )


def test_a_failing_node_shows_its_message_and_no_trace_of_the_kit(pytester):
    found = pytest_run(
        pytester,
        """
@testing.gradtest(st.rnn_configs(cells=[Detached], long_T=0), properties="numeric")
def test_detached(module): ...

class TestDetached(testing.CellSuite):
    properties = ["numeric"]
    def make(self, cfg):
        return Detached(cfg.D, cfg.H)
""",
    )
    found.assert_outcomes(failed=2)
    text = found.stdout.str()
    assert "backward of Detached is wrong" in text
    assert "smallest  RNNConfig(Detached, T=1, N=1, D=1, H=2)" in text
    assert "smallest  RNNConfig(TestDetached().make, T=1, N=1, D=1, H=2)" in text
    assert "nodes.py" not in text
    assert "FAILED test_it.py::test_detached[numeric] - GradientError: backward of" in text


def test_a_suite_takes_methods_configurations_and_the_state_of_its_instance(pytester):
    found = pytest_run(
        pytester,
        """
class Base(testing.CellSuite):
    properties = ["numeric", "integrity"]
    configs = st.rnn_configs(T=(1, 2), layers=1, long_T=0)

class TestOwn(Base):
    @pytest.fixture(autouse=True)
    def prepare(self):
        self.bias = False
    def make(self, cfg):
        assert cfg.layers <= 2
        return Plain(cfg.D, cfg.H, bias=self.bias)
    def test_integrity(self):
        assert self.bias is False

class TestSkips(TestOwn):
    skip = {"numeric": "is not ready"}
""",
        "-v",
    )
    found.assert_outcomes(passed=3, skipped=1)
    found.stdout.fnmatch_lines(
        [
            "*TestOwn::test_integrity PASSED*",
            "*TestOwn::test_numeric PASSED*",
            "*TestSkips::test_integrity PASSED*",
            "*TestSkips::test_numeric SKIPPED*",
            "*is not ready*",
        ]
    )


def test_a_suite_without_a_cell_says_so(pytester):
    found = pytest_run(
        pytester,
        """
class TestNothing(testing.CellSuite):
    properties = ["numeric"]

class TestLayer(testing.CellSuite):
    properties = ["numeric"]
    def make(self, cfg):
        return nn.LSTM(cfg.D, cfg.H)
""",
    )
    found.assert_outcomes(failed=2)
    found.stdout.fnmatch_lines(
        [
            "*TestNothing defines no make(self, cfg) -> cell*",
            "*TestLayer().make returned LSTM, expected a cell: an nn.Cell with step(x, state)*",
        ]
    )
