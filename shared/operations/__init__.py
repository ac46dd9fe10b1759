"""One-off operations: the catalogue, their records, and the way from a queue message to an outcome."""
