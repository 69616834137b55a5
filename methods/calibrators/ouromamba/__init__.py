"""OuroMamba's quantizer."""
