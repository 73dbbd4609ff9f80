"""How many examples a gradient test draws: the hypothesis profiles dev, ci and thorough."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis import settings as Settings

EXAMPLES = {"dev": 20, "ci": 200, "thorough": 2000}
chosen: str | None = None  # by the pytest plugin; without it the environment decides


def name() -> str:
    """Return the profile that holds: the one chosen, else ``HYPOTHESIS_PROFILE``, else dev.

    A profile of that variable that is none of these three belongs to somebody else.

    >>> name() in EXAMPLES
    True
    """
    if chosen is not None:
        return chosen
    wanted = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    return wanted if wanted in EXAMPLES else "dev"


def profile(which: str | None = None) -> Settings:
    """Return hypothesis settings: no deadline ever; ci draws the same examples in every run.

    Parameters
    ----------
    which : {"dev", "ci", "thorough"}, optional
        The one that holds.

    Raises
    ------
    ValueError
        If there is no such profile.

    Examples
    --------
    >>> profile("ci").max_examples, profile("ci").derandomize, profile("dev").deadline
    (200, True, None)
    """
    from hypothesis import HealthCheck, settings

    which = name() if which is None else which
    if which not in EXAMPLES:
        raise ValueError(f"no profile {which!r}: there are {', '.join(EXAMPLES)}")
    common = settings(
        settings.get_profile("default"),
        max_examples=EXAMPLES[which],
        deadline=None,
        # machines differ in speed, examples do not
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    if which == "ci":
        return settings(common, derandomize=True, database=None, print_blob=True)
    return common


def load(which: str | None = None) -> None:
    """Register the three with hypothesis and make one the default of every ``@given``.

    >>> from hypothesis import settings
    >>> before = settings.get_current_profile_name()
    >>> load("thorough"); settings.default.max_examples
    2000
    >>> settings.load_profile(before)
    """
    from hypothesis import settings

    for known in EXAMPLES:
        settings.register_profile(known, profile(known))
    settings.load_profile(name() if which is None else which)
