"""AdaRound (ICML 2020): learned rounding, layer by layer."""
