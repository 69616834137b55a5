"""Suite `imagenet`."""
