"""What skipping costs on tasks: the paper's, and others, from their official files."""
