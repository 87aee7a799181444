"""Tissue: which parts of a slide are tissue, detected or read from the user's masks."""
