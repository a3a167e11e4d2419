"""What rows of results are made of: scores of embeddings, captions and classes, with intervals."""
