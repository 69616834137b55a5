"""Suite `coco`."""
