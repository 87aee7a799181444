"""Masks and maps as files that other programs open: one module per format in `formats/`."""
