"""Networks: encoders and segmenters by name, augmentation, the one training loop, checkpoints."""
