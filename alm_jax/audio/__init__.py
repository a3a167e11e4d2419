"""Audio side of the model input: log-mel front ends, filter banks and augmentation, all in JAX."""
