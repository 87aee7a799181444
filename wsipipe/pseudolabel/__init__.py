"""Weak labels to patch-level pixel masks: bags, self-supervised pretraining, methods, and the stage that runs them."""
