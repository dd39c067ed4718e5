"""What there is to skip in a model."""
