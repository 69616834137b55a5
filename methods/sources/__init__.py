"""Image sources: a folder per plugin, named as it is."""
