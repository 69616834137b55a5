"""SARDFQ (ICCV 2025): images whose attention follows random priors, with several semantics an image."""
