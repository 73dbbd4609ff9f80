"""Back-propagation through time, truncated and measured.

`truncated` cuts the gradient's way back into the past, `gradient_error` says what that costs, and
`report` shows how the gradient of a loss vanishes or explodes on its way, step by step.
"""

from __future__ import annotations

from .flow import Report, report
from .truncation import GradientError, Truncated, gradient_error, truncated

__all__ = ["GradientError", "Report", "Truncated", "gradient_error", "report", "truncated"]
