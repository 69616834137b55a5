"""What a trace consists of: operations, and where their operands come from."""

from __future__ import annotations

from dataclasses import dataclass

from methods.core.graph.intercept import OpKey
from methods.core.numerics.functions import ActivationFunction

# What an operand is made of, beside operations and parameters. UNKNOWN: a tensor of which nothing was seen, such as an
# attribute that is not a buffer; it can be anything, so nothing is assumed of it.
INPUT, CONSTANT, UNKNOWN = "input", "constant", "unknown"
TRACED_IMAGES = 2


@dataclass(frozen=True)
class Operand:
    """Where an operand comes from: operations, parameter names, the network's input, constants (buffers).

    `altered`: its values are not those of its origins, nor those times a number: it was resized, scaled channel by
    channel, or put together.
    """

    ops: frozenset[OpKey]
    parameters: frozenset[str]
    others: frozenset[str]
    altered: bool = False

    @property
    def is_parameter(self) -> bool:
        """Made of parameters alone (position embedding, relative position bias)."""
        return bool(self.parameters) and not self.ops and not self.others & {INPUT, UNKNOWN}

    @property
    def is_constant(self) -> bool:
        """Made of constants alone (attention mask, fixed position embedding)."""
        return not self.ops and not self.parameters and self.others == {CONSTANT}


@dataclass(frozen=True)
class Op:
    """One keyed operation.

    `weight` is the parameter name of a linear layer's or convolution's weight, `macs` the multiply-accumulates of a
    linear layer, convolution or matrix product for one image (0 for other kinds). `batched`: it depends on the images,
    so that the first axis of its output is the batch, or that times the windows or boxes of an image.

    `family` numbers the tensor of which this is a function by itself, through elementwise functions and reductions of
    it. `composite`: two such functions of one tensor meet here, which makes "activation" (`x * sigmoid(1.702 * x)`) or
    "norm" (`x * rsqrt(mean(x * x))`).

    `function` is the known activation function that it is or completes. `given` are those that made its operands, which
    were at most moved and scaled by a number since.
    """

    key: OpKey
    operands: tuple[Operand, ...]
    weight: str | None
    shape: tuple[int, ...]
    macs: int = 0
    batched: bool = True
    family: int = -1
    composite: str | None = None
    function: ActivationFunction | None = None
    given: tuple[ActivationFunction | None, ...] = ()

    @property
    def role(self) -> str:
        """Its kind, or what it completes."""
        return self.composite or self.key.kind


def lies_in(module: str, part: str | None) -> bool:
    """Whether a module is `part` or in it; None is the whole network."""
    return part is None or f"{module}.".startswith(f"{part}.")
