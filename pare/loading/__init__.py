"""From a model's name to its tensors: where it is, which files it has, what is in them, the modules they fill."""
