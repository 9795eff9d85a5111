"""roads: the little world that pare's built-in model was trained on."""
