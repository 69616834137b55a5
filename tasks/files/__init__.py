"""Files of data sets: their content by hash, images, downloads."""
