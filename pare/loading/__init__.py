"""From a model's name to its tensors: resolve, read the folder or file, fill the modules."""
