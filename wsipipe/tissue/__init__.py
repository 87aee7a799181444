"""Which part of a slide is tissue."""
