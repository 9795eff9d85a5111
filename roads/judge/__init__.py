"""The judge: a small network that says what an image of the little world shows."""
