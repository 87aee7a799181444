"""wsipipe: weak labels on whole-slide images in, pixel maps out."""

__version__ = "0.1.0"
