"""What the built-in model and the techniques can do, measured against the renderer's truth."""
