"""Masks and maps against the truth: pooled confusion, metrics, trivial answers beside them, tables and figures."""
