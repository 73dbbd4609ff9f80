"""Back-propagation through time, truncated and measured.

`truncated` cuts the gradient's way back into the past, `gradient_error` says what that costs, and
`report` shows how the gradient of a loss vanishes or explodes on its way, step by step;
`reads` shows which steps reach an output at all.
"""

from __future__ import annotations

from .flow import Report, report
from .reading import reads
from .truncation import GradientError, Truncated, gradient_error, truncated

__all__ = ["GradientError", "Report", "Truncated", "gradient_error", "reads", "report", "truncated"]
