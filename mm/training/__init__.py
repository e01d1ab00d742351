"""Training of heads on any encoder: data with its truth, batches, losses, checks, and the run that survives a kill."""
