"""Answers graded by another model, behind any endpoint that speaks OpenAI's protocol: by themselves, or beside another
run's. `texts` says what is graded, `templates` in which words the judge is asked, `grades` what it may reply,
`endpoint` asks it, `replies` keeps all that was paid for, `tally` counts, and `judge` does one after the other."""
