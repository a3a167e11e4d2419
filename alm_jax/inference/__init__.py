"""A trained model in use: any clip in, embeddings, captions and reconstructions out."""
