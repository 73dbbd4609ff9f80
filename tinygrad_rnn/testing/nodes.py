"""What one node of a suite does: a property on the corners, then on drawn configurations.

Every node runs the corners first, in each profile, and shrinks one that fails with
``RNNConfig.smaller()``; then hypothesis draws configurations and shrinks those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis.strategies import SearchStrategy

from . import checks, integrity, options, profiles, relations, report, strategies
from .beside import beside
from .configs import RNNConfig
from .report import GradientError, GradReport, Verdict

if TYPE_CHECKING:
    from hypothesis import settings as Settings

Property = Callable[[RNNConfig], str | None]  # checks; returns why it does not apply, or None

SAMPLE = 100  # configurations that are drawn to learn which corners the strategy allows
shrinking = True  # off while mutants are tried: that a test fails is all that is asked


# --- the properties -------------------------------------------------------------------------------


def _numeric(cfg: RNNConfig, **settings: Any) -> None:
    """Compare every gradient of the layer with a reference."""
    layer = cfg.make()
    state, lengths = cfg.initial(layer), _lengths(cfg)
    checks.check_module(layer, cfg.x(), state=state, lengths=lengths, **settings)
    beside(layer, cfg.x(), state=state, lengths=lengths)


def _integrity(cfg: RNNConfig) -> None:
    """Look for what no number shows: purity, mutation, aliasing, accumulation, release."""
    layer = cfg.make()
    integrity.check_vjp(layer, cfg.x(), state=cfg.initial(layer), lengths=_lengths(cfg))


def _second_order(cfg: RNNConfig) -> None:
    """Compare the gradients of the gradients, on a small configuration."""
    _numeric(_small(cfg), order=2)


def _small(cfg: RNNConfig) -> RNNConfig:
    """Return a configuration of two steps, sequences, units and layers at most."""
    sizes = {name: min(getattr(cfg, name), 2) for name in ("T", "N", "D", "H", "layers")}
    lengths = cfg.lengths and tuple(min(n, sizes["T"]) for n in cfg.lengths[: sizes["N"]])
    return cfg.replace(**sizes, lengths=lengths, dtype="float64")


def _lengths(cfg: RNNConfig) -> list[int] | None:
    return None if cfg.lengths is None else list(cfg.lengths)


def _relation(name: str, cfg: RNNConfig) -> str | None:
    relation = relations.RELATIONS[name]
    reason = relation.needs(cfg)
    if reason is None:
        relation(cfg)
    return reason


FIXED = ("numeric", "integrity", "second_order")


def names() -> tuple[str, ...]:
    """Return the properties of a cell in the order they run in: checks, then the relations.

    >>> names()[:3]
    ('numeric', 'integrity', 'second_order')
    """
    of_layers = [r for r in relations.RELATIONS.values() if r.kind == "layer"]
    return (*FIXED, *(r.name for r in sorted(of_layers, key=lambda r: r.number)))


_CALL = "layer, cfg.x(), state=cfg.initial(layer), lengths=cfg.lengths"

_RERUN = {
    "numeric": "layer = cfg.make(); testing.check_module(" + _CALL + "{settings})",
    "integrity": "layer = cfg.make(); testing.check_vjp(" + _CALL + ")",
    "oracle": "layer = cfg.make(); testing.check_against({!r}, " + _CALL + ")",
    "second_order": "layer = cfg.make(); testing.check_module(" + _CALL + ", order=2{settings})",
}


def _rerun(name: str, settings: dict[str, Any]) -> str:
    """Return the line that runs a property again on ``cfg``."""
    if name == "body":
        return "call the test with cfg.make()"
    line = _RERUN.get(name, f"testing.relations.{name}(cfg)")
    chosen = {"method": options.current.method, "seed": options.current.seed, **settings}
    shown = [f", {key}={value!r}" for key, value in chosen.items() if value is not None]
    return line.replace("{settings}", "".join(shown))


# --- running one --------------------------------------------------------------------------------


def run(
    name: str,
    prop: Property,
    corners: Sequence[RNNConfig],
    configs: SearchStrategy[RNNConfig],
    key: str,
    settings: dict[str, Any],
) -> None:
    """Check a property on the corners, then on drawn configurations; skip if it never applied."""
    __tracebackhide__ = True
    applied, reasons = 0, dict[str, None]()

    def once(cfg: RNNConfig) -> None:
        __tracebackhide__ = True
        nonlocal applied
        try:
            with _about(cfg):
                reason = prop(cfg)
        except hypothesis.errors.UnsatisfiedAssumption:
            raise
        except (Exception, pytest.fail.Exception) as error:
            raise FailedError(cfg, error) from None
        if reason is None:
            applied += 1
        else:
            reasons[reason] = None

    failed = None
    try:
        for cfg in corners:
            with suppress(hypothesis.errors.UnsatisfiedAssumption):  # of a check: a kink
                once(cfg)
        _draw(once, configs, key, settings_of(name))
    except FailedError as first:
        failed = first
    if failed is not None:  # here, so that the error has no other context than its own
        raise _shrunk(once, failed).told(failed.cfg, _rerun(name, settings))
    if not applied:
        pytest.skip(f"{name} applied to no configuration: {'; '.join(list(reasons)[:3])}")


class FailedError(Exception):
    """A configuration fails: the error, and in how many steps it was shrunk."""

    def __init__(self, cfg: RNNConfig, error: BaseException, steps: int = 0) -> None:
        self.cfg, self.error, self.steps = cfg, error, steps

    def alike(self, other: FailedError) -> bool:
        """Whether both fail in the same way."""
        a, b = self.error, other.error
        return type(a) is type(b) and getattr(a, "verdict", None) is getattr(b, "verdict", None)

    def told(self, original: RNNConfig, rerun: str) -> BaseException:
        """Return the error with the configuration as code, where it came from, and its rerun."""
        came = f"        (shrunk from {original!r} in {self.steps} steps)" if self.steps else ""
        if not isinstance(self.error, GradientError):
            self.error.add_note(f"with {self.cfg!r}{came}")
            return self.error
        found = self.error.report
        found.config = self.cfg
        head, *rest = str(self.error).splitlines()
        cell = getattr(self.cfg.cell, "__name__", "the cell")
        lines = [head.replace("backward of Recurrent ", f"backward of {cell} ")]
        lines += [t for t in rest if not t.startswith(_OLD)]
        if found.method.startswith("oracle "):
            rerun = _RERUN["oracle"].format(options.current.oracle)
        lines += [f"  smallest  {self.cfg!r}{came}", f"  rerun     {rerun}"]
        error = GradientError("\n".join(lines), found, self.error.verdict)
        return error.with_traceback(self.error.__traceback__)


_OLD = ("  smallest ", "  rerun ", "  with RNNConfig(")  # lines that are written anew


def _draw(
    once: Callable[[RNNConfig], None],
    configs: SearchStrategy[RNNConfig],
    key: str,
    settings: Settings,
) -> None:
    """Run on drawn configurations."""
    __tracebackhide__ = True
    failed: FailedError | None = None

    def drawn(cfg: RNNConfig) -> None:
        __tracebackhide__ = True
        nonlocal failed
        try:
            once(cfg)
        except FailedError as error:
            failed = error
            raise

    # what hypothesis remembers of one node is not for another
    drawn._hypothesis_internal_add_digest = key.encode()  # type: ignore[attr-defined]
    test = hypothesis.given(configs)(settings(drawn))
    if options.current.seed is not None:
        test = hypothesis.seed(options.current.seed)(test)
    try:
        test()
    except hypothesis.errors.Flaky:
        if failed is None:
            raise
        raise GradientError(
            f"{str(failed.error).splitlines()[0]}\n"
            f"  but the same check of {failed.cfg!r} passes when it runs again: the cell is not "
            f"deterministic (a random number drawn in step? a value kept between calls?)",
            getattr(failed.error, "report", None),
            Verdict.UNRELIABLE,
        ) from None


def settings_of(name: str) -> Settings:
    """Return the settings of the profile, without what is of no use to a property."""
    base = profiles.profile()
    most = base.max_examples if name != "second_order" else max(5, base.max_examples // 4)
    return hypothesis.settings(
        base,
        max_examples=most,
        report_multiple_bugs=False,
        print_blob=False,  # the configuration is printed as code, which does not age
        phases=[hypothesis.Phase.reuse, hypothesis.Phase.generate],  # _shrunk is faster
        database=base.database if shrinking else None,
    )


def _shrunk(once: Callable[[RNNConfig], None], failed: FailedError) -> FailedError:
    """Return the smallest configuration that fails in the same way.

    Greedy: the first simpler neighbour that fails too is taken, until none does.
    """
    while shrinking:
        for small in _neighbours(failed.cfg):
            try:
                with report.unheard():
                    once(small)
            except FailedError as found:
                if found.alike(failed):
                    failed = FailedError(found.cfg, found.error, failed.steps + 1)
                    break
            except hypothesis.errors.UnsatisfiedAssumption:
                pass
        else:
            break
    return failed


def _neighbours(cfg: RNNConfig) -> Iterator[RNNConfig]:
    """Yield simpler configurations: one field less, or both sizes of a square one."""
    yield from cfg.smaller()
    if cfg.D == cfg.H:
        yield from (cfg.replace(D=k, H=k) for k in range(1, cfg.H))


@contextmanager
def _about(cfg: RNNConfig) -> Iterator[None]:
    """Write the configuration into every report of the checks inside."""

    def label(found: GradReport) -> None:
        if found.config is None:
            found.config = cfg

    heard = report.LISTENERS
    if heard:
        heard.insert(0, label)
    try:
        yield
    finally:
        if label in heard:
            heard.remove(label)


# --- what may be asked ----------------------------------------------------------------------------


def corners_in(configs: SearchStrategy[RNNConfig], where: str) -> list[RNNConfig]:
    """Return the corners of the cells that the strategy draws, without those it cannot draw.

    Which it can is read off a sample: a direction, a dtype, a kind of state that never came, or
    a size smaller than any that came, is not in it.
    """
    sample: list[RNNConfig] = []

    @hypothesis.settings(
        profiles.profile("ci"), max_examples=SAMPLE, phases=[hypothesis.Phase.generate],
        print_blob=False,
    )  # fmt: skip
    @hypothesis.given(configs)
    def draw(cfg: RNNConfig) -> None:
        if not isinstance(cfg, RNNConfig):
            raise TypeError(f"{where}: the strategy draws {cfg!r}; it must draw RNNConfigs")
        sample.append(cfg)

    draw()
    seen = {
        name: {getattr(cfg, name) for cfg in sample}
        for name in ("bidirectional", "bias", "batch_first", "state", "dtype")
    }
    least = {name: min(getattr(c, name) for c in sample) for name in ("T", "N", "D", "H", "layers")}
    with_lengths = {cfg.lengths is None for cfg in sample}
    single = max(cfg.layers for cfg in sample) == 1
    return [
        cfg
        for cfg in strategies.corners(list(dict.fromkeys(c.cell for c in sample)))
        if all(getattr(cfg, name) in values for name, values in seen.items())
        and all(getattr(cfg, name) >= value for name, value in least.items())
        and (cfg.lengths is None) in with_lengths
        and not (single and cfg.layers > 1)
    ]


def wanted_of(
    where: str, properties: str | Iterable[str], skip: dict[str, str], also: tuple[str, ...] = ()
) -> dict[str, str | None]:
    """Return the properties that run, each with the reason to skip it or None."""
    known = (*names(), *also)
    if isinstance(properties, str):
        chosen = known if properties == "all" else (properties,)
    else:
        chosen = tuple(properties)
    for name in (*chosen, *skip):
        if name in known:
            continue
        if name in relations.RELATIONS:
            raise ValueError(f"{where}: {name!r} is a relation of functions, not of cells")
        raise ValueError(f"{where}: no property {name!r}; there are {', '.join(known)}")
    for name, reason in skip.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{where}: skip[{name!r}] needs the reason as text, got {reason!r}")
    return {name: skip.get(name) for name in known if name in chosen}


def check_of(name: str, settings: dict[str, Any]) -> Property:
    """Return what checks a property on a configuration."""

    def prop(cfg: RNNConfig) -> str | None:
        __tracebackhide__ = True
        if name == "numeric":
            _numeric(cfg, **settings)
        elif name == "integrity":
            _integrity(cfg)
        elif name == "second_order":
            _second_order(cfg)
        else:
            return _relation(name, cfg)
        return None

    return prop
