"""One architecture a file, named by its `model_type`."""
