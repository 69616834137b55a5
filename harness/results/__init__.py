"""Third stage: records of cells, on disk and believed only as far as they can be checked."""
