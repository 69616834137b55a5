"""Task `segmentation`: mIoU."""
