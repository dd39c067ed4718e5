"""How settings are found for a model: recorded, simulated, measured, searched. `calibration.py` is the way in."""

from __future__ import annotations

from .calibration import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
