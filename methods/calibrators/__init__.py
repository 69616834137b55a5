"""Calibrators: a folder per plugin, named as it is (with `_` for `-`)."""
