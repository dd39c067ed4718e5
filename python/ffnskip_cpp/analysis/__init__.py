"""What `ffnskip analyze` is made of: `measure` takes the numbers, `draw` makes pictures of them, `report` a page."""
