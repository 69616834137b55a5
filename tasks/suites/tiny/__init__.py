"""Suite `tiny`."""
