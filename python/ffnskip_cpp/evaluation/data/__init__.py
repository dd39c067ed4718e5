"""Readers of the forms that official data comes in, each entry with the place it was found at."""
