"""Masks to a trained network, and the network's stitched maps of whole slides."""
