"""How runs are trained whose figures are of a given learning rate: nothing moves it but a schedule."""

from typing import Any

FIXED: dict[str, Any] = {"trust_region": 0.0, "max_norm": 1.0}  # settings of `Training`
