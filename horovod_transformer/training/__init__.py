"""Training: one optimizer update (step), the run around it (trainer), and what makes it exact (resume)."""
