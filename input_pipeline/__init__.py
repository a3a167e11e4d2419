"""Everything between files on disk and numpy batches; imports no JAX."""
