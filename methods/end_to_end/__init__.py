"""Methods that are more than an image source and then a calibrator."""
