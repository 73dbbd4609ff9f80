"""The pytest plugin: profiles, seed, method, oracle, a table, a report, mutants.

Loaded by pytest through the entry point ``tinygrad_rnn``; hypothesis is imported only where a
profile is asked for or a test uses it.  A run in which nothing was checked says nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from . import beside, options, profiles, report

if TYPE_CHECKING:
    from .rerun import Mutation
    from .tally import Tally

ORACLES = ("torch", "jax", "autograd")
METHODS = ("auto", "complex", "ridders")
HERE = str(Path(__file__).parent)
NAME = "tinygrad_rnn.session"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    group = parser.getgroup("grad", "gradient checks (tinygrad_rnn.testing)")
    group.addoption(
        "--grad-profile",
        choices=list(profiles.EXAMPLES),
        help="how many examples are drawn: dev 20, ci 200 (always the same), thorough 2000; "
        "default: HYPOTHESIS_PROFILE, else dev.  Also the hypothesis profile of the run.",
    )
    group.addoption(
        "--grad-seed", type=_seed, metavar="N", help="of random directions and of what is drawn"
    )
    group.addoption(
        "--grad-method", choices=METHODS, default="auto", help="the reference of the checks"
    )
    group.addoption(
        "--grad-oracle", choices=ORACLES, help="compare modules with this engine too"
    )  # fmt: skip
    group.addoption("--grad-report", metavar="FILE", help="write what was checked as JSON")
    group.addoption(
        "--grad-mutate",
        nargs="?",
        const="",
        metavar="=OP",
        help="after the tests passed, put faults into the backward rules of this op (default: of "
        "every op that the tests declare) and report those that no test sees",
    )
    parser.addini("grad_profile", "the profile of the run unless HYPOTHESIS_PROFILE names one")


def _seed(text: str) -> int:
    import argparse

    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number from 0 on")
    return int(text)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Keep ``--grad-mutate tests/`` from taking the path for the name of an op."""
    args[:] = ["--grad-mutate=" if a == "--grad-mutate" else a for a in args]


@pytest.hookimpl(tryfirst=True)  # before --hypothesis-profile, which so has the last word
def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, set what the checks read and start to count."""
    config.addinivalue_line(
        "markers",
        "gradcheck(order=1, ...): settings of check_grad, for the fixture gradcheck and for the "
        "numeric check of a gradtest or a CellSuite.",
    )
    session = Session(config)
    config.pluginmanager.register(session, NAME)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return the options, where one was given."""
    names = ("profile", "seed", "method", "oracle", "report")
    given = {n: config.getoption(f"grad_{n}") for n in names}
    shown = [f"{n} {v}" for n, v in given.items() if v not in (None, "auto")]
    return f"gradient checks: {', '.join(shown)}" if shown else None


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> Callable[..., report.GradReport]:
    """Return ``check_grad`` with the settings of ``@pytest.mark.gradcheck(...)`` on the test."""
    from .checks import check_grad

    mark = request.node.get_closest_marker("gradcheck")
    settings = dict(mark.kwargs) if mark else {}

    def gradcheck(f: Any, *inputs: Any, **more: Any) -> report.GradReport:
        __tracebackhide__ = True
        return check_grad(f, *inputs, **{**settings, **more})

    return gradcheck


class Session:
    """One run of pytest: sets the options, counts, reports, and gives everything back."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.path, oracle, wanted = _report_path(config), _oracle(config), _profile(config)
        self.tally: Tally | None = None  # made when the first check ends
        self.failures: list[dict[str, Any]] = []
        self.troubles: list[str] = []
        self.mutation = _mutation(config)
        self.before = dataclasses.replace(options.current)
        self.heard, self.chosen = report.LISTENERS[:], profiles.chosen
        self.profile: str | None = None  # of hypothesis, before this run
        if wanted is not None:
            self._load(wanted)
        method = config.getoption("grad_method")
        options.current.method = None if method == "auto" else method
        options.current.seed = config.getoption("grad_seed")
        options.current.oracle = oracle
        report.LISTENERS[:] = [self.hear]
        beside.unknown.clear()

    def hear(self, found: report.GradReport) -> None:
        """Count a report; a fault in here must fail no test."""
        try:
            self.counted()(found)
        except Exception as trouble:
            self.troubles[:] = [f"a report could not be counted: {_words(trouble)}"]

    def counted(self) -> Tally:
        """Return the counts."""
        if self.tally is None:
            from .tally import Tally

            self.tally = Tally()
        return self.tally

    def _load(self, wanted: str) -> None:
        from hypothesis import settings

        self.profile = settings.get_current_profile_name()
        profiles.chosen = wanted
        profiles.load(wanted)

    def pytest_unconfigure(self) -> None:
        """Give back what the run has set: another may follow in this process."""
        if self.mutation is not None:
            self.mutation.unwatch()
        vars(options.current).update(vars(self.before))
        report.LISTENERS[:], profiles.chosen = self.heard, self.chosen
        if self.profile is not None:
            from hypothesis import settings

            settings.load_profile(self.profile)

    # --- collecting and running

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Refuse a marker that check_grad would not understand."""
        for item in items:
            for mark in item.iter_markers("gradcheck"):
                _require_settings(item, mark)

    def pytest_collection_finish(self) -> None:
        """Learn which ops there are, now that the test files are imported."""
        if self.mutation is not None:
            self.mutation.watch()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Note which test is running, for the mutants."""
        if self.mutation is not None:
            self.mutation.item = item
        try:
            return (yield)
        finally:
            if self.mutation is not None:
                self.mutation.item = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show of a GradientError its message and the user's lines, not those of the kit."""
        error = call.excinfo.value if call.excinfo is not None else None
        if not isinstance(error, report.GradientError):
            result = yield
            if isinstance(error, pytest.skip.Exception) and _of_a_suite(item):
                path, line, _ = item.location  # not where in the kit it was skipped
                result.longrepr = (path, (line or 0) + 1, f"Skipped: {error}")
            return result
        shown = _without_kit(error.__traceback__)
        if shown is not None:
            call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error, shown))
        assert call.excinfo is not None
        result = yield
        if _only_message(item):
            result.longrepr = call.excinfo.getrepr(style="value")
        crash = getattr(result.longrepr, "reprcrash", None)
        if crash is not None:  # what the short summary shows
            crash.message = crash.message.removeprefix(f"{type(error).__module__}.")
        if self.mutation is None or not self.mutation.running:
            self.failures.append(
                {
                    "test": item.nodeid,
                    "verdict": str(error.verdict),
                    "message": str(error),
                    "report": error.report.as_dict(),
                }
            )
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Try the mutants after the tests have passed."""
        result = yield
        if self.mutation is not None:
            try:
                self.mutation.run(session)
            except Exception as trouble:
                self.troubles.append(f"--grad-mutate stopped: {_words(trouble)}")
            finally:
                self.mutation.unwatch()
        return result

    # --- telling

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        if self.path is None or hasattr(self.config, "workerinput"):
            return
        from .tally import write

        try:
            write(self.path, self.content())
        except Exception as trouble:
            self.troubles.append(f"--grad-report could not be written: {_words(trouble)}")

    def content(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {
            "profile": profiles.name(),
            "seed": options.current.seed,
            "method": options.current.method or "auto",
            "oracle": options.current.oracle,
            **self.counted().as_dict(),
            "failures": self.failures,
            "mutation": None if self.mutation is None else self.mutation.as_dict(),
        }

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table, the survivors and what went wrong in here, if there is any."""
        lines: list[str] = []
        try:
            if self.tally is not None and self.tally.lines:
                lines += self.tally.table()
            lines += [f"not compared: {reason}" for reason in beside.unknown.values()]
            if self.mutation is not None:
                lines += self.mutation.table()
        except Exception as trouble:
            self.troubles.append(f"the table failed: {_words(trouble)}")
        lines += self.troubles
        if lines:
            terminalreporter.section(f"gradient checks (profile {profiles.name()})")
            for line in lines:
                terminalreporter.write_line(line)


def _words(trouble: Exception) -> str:
    return f"{type(trouble).__name__}: {trouble}"


def _without_kit(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that are in this folder; None if none is left."""
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(HERE + os.sep):
            kept.append(traceback)
        traceback = traceback.tb_next
    shown = None
    for t in reversed(kept):
        shown = TracebackType(shown, t.tb_frame, t.tb_lasti, t.tb_lineno)
    return shown


def _of_a_suite(item: pytest.Item) -> bool:
    return getattr(getattr(item, "function", None), "of_the_suite", False)


def _only_message(item: pytest.Item) -> bool:
    """Whether a suite made the test, so that there is no line of the user's to show."""
    callspec = getattr(item, "callspec", None)
    body = callspec is not None and callspec.params.get("relation") == "body"
    return _of_a_suite(item) and not body


def _mutation(config: pytest.Config) -> Mutation | None:
    named = config.getoption("grad_mutate")
    if named is None:
        return None
    from .rerun import Mutation

    return Mutation(config, named)


def _profile(config: pytest.Config) -> str | None:
    """Return the profile that was asked for: by the option, or by the project's ini file."""
    wanted = _wanted_profile(config)
    if wanted is not None and not _installed("hypothesis"):
        raise pytest.UsageError(f"profile {wanted}: hypothesis is not installed")
    return wanted


def _wanted_profile(config: pytest.Config) -> str | None:
    option: str | None = config.getoption("grad_profile")
    ini = config.getini("grad_profile")
    if option is not None or not ini:
        return option
    if ini not in profiles.EXAMPLES:
        raise pytest.UsageError(
            f"grad_profile = {ini}: no such profile; there are {', '.join(profiles.EXAMPLES)}"
        )
    wanted = os.environ.get("HYPOTHESIS_PROFILE")
    return wanted if wanted in profiles.EXAMPLES else str(ini)


def _oracle(config: pytest.Config) -> str | None:
    """Return the oracle that was asked for, if it is installed."""
    oracle: str | None = config.getoption("grad_oracle")
    if oracle is not None and not _installed(oracle):
        raise pytest.UsageError(f"--grad-oracle={oracle}: {oracle} is not installed")
    return oracle


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _report_path(config: pytest.Config) -> Path | None:
    """Return where the report goes, by an absolute path: tests may change the folder."""
    given = config.getoption("grad_report")
    if given is None:
        return None
    path = Path(given).absolute()
    if path.is_dir():
        raise pytest.UsageError(f"--grad-report={given}: this is a folder; name a file in it")
    if not path.parent.is_dir():
        raise pytest.UsageError(f"--grad-report={given}: there is no folder {path.parent}")
    return path


def _require_settings(item: pytest.Item, mark: pytest.Mark) -> None:
    """Raise a UsageError for a marker that check_grad would not understand."""
    from .checks import check_grad

    if mark.args:
        raise pytest.UsageError(
            f"{item.nodeid}: gradcheck takes keywords, as gradcheck(order=2); got {mark.args!r}"
        )
    known = [
        p.name
        for p in inspect.signature(check_grad).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    for name in mark.kwargs:
        if name not in known:
            raise pytest.UsageError(
                f"{item.nodeid}: gradcheck has no setting {name!r}; there are {', '.join(known)}"
            )
