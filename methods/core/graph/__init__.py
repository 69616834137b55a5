"""Networks as graphs: operations, sites, blocks, and how to look into a running network."""
