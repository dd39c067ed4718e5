"""How settings are found for a model: recorded, simulated, measured, searched. `calibration.py` is the way in."""
