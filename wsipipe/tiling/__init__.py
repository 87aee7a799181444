"""Slides to stores: plan which chunks are needed, then write them."""
