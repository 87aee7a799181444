"""Readers: one file per family of formats, tried in the order of `READERS`."""
