"""GLF-Q (2026): blocks trained, weights themselves among it, so that the last features are the float model's."""
