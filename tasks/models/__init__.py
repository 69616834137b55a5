"""Float models, and the checkpoints they come from."""
