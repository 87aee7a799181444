"""Maps against truth: pooled confusion, the scores made from it, trivial answers beside them, and tables."""
