"""The embedded suite: data and trained models small enough to be kept in the repository."""
