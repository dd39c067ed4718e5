"""What `ffnskip bench` is made of: `options` says what to measure, `runners` decode, `timing` takes the times, `rows`
are the result, and `report` prints it."""
