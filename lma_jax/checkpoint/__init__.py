"""Checkpoints that describe themselves: their format, the manager that writes them, and restoring from them."""
