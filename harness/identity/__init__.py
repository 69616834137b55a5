"""What decides whether two numbers are of the same computation: names, cells and their keys, seeds, code."""
