"""GGUF files: their heads, their weights, other types for them."""
