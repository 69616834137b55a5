"""A quantized network as it would be deployed: its sites are codes of eight bits, its weights are stored as codes.

`codes` turns quantizers and rounded weights into codes, steps and zero points, where they have an integer form.
`module` is the network that computes with them, by the operators of `harness.api.integers`. `plan` decides, product by
product, which can be one of integers, and gives the whole (`harness.api.contracts.Deployment`).

No number of a cell comes from here: results name this package (`Quantized.deployment`) and do not import it, so that
a change here outdates none.
"""

from methods.core.deployment.plan import deployed

__all__ = ["deployed"]
