"""Evol-Q: evolutionary perturbation of attention's weight scales under a contrastive loss of the outputs."""
