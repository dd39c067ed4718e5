"""Serving a model to several clients at once; the parts need the extra `[server]` but for the engine."""
