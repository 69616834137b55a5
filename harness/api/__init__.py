"""What plugins may import of the harness: contracts, options, precisions, errors. The rest of it is its own affair."""
