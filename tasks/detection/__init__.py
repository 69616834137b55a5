"""Task `detection`: box AP."""
