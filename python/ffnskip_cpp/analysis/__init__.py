"""What `ffnskip analyze` is made of: `analysis` takes the numbers, `draw` makes pictures of them, `report` a page."""
