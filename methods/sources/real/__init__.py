"""Real training images, the ceiling of image sources; not data-free."""
