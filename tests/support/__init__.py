"""What the tests build on: small models and checkpoints, runs of the programs, Algorithm 1 in NumPy."""
