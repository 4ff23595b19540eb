"""The fleet as values: what nodes report, and pure decisions over it."""
