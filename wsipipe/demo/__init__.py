"""Demonstration data with known pixel truth, and the trivial answers its figures stand beside."""
