"""Self-supervised pretraining of encoders on the slides' own patches."""
