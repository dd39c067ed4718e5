"""How settings are found for a model: recorded, simulated, measured, searched. `calibrate.py` is the way in."""
