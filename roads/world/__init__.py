"""The little world: a scene is drawn by one renderer, and named by captions."""
