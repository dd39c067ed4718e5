"""What the other parts measure with: texts, similarity, quality, what a generation skips; each a module."""
