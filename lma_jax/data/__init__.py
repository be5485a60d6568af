"""Images: where they come from, what is done to them, and the batches they are fed in."""
