"""Weak labels to patch-level masks: bags, methods, refinements, and the stage that runs them."""
