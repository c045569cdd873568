"""One process of any grid, dry: the run's own engine takes a step with tensors that have shapes and no numbers."""
