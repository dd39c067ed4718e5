"""What `ffnskip try` is made of: `texts` to measure on, `search` for what to skip, `quality` and `speed` of that,
`smaller` quantisations to compare with, `work`, which does it all in a given time; and `trial`, the result, with its
`rows`, its `verdict` and the page to read (`report`)."""
