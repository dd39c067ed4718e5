"""What the other parts measure with: similarity, quality, texts."""
