"""NoisyQuant: a fixed noise added to the inputs of linear layers before they are rounded, and taken out after."""
