"""What `ffnskip analyze` is made of: what is `wanted`, the `subject` that is measured, a module for each of the
`pictures` in one `style`, and the `report`."""
