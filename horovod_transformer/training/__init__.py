"""Training: one optimizer update (step), the loop around it, and what survives it (checkpoint)."""
