"""What only a CPU needs to be fast or to save memory."""
