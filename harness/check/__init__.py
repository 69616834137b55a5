"""`dfqbench check`: the conformance of a plugin, for its author."""
