"""What `ffnskip try` is made of: `texts` to measure on, `search` for what to skip, `quality` and `speed` of that,
`smaller` quantisations to compare with, `verdict` and `report` of what was found, and `trial`, which does it all in a
given time."""
