"""Numbers about a model: retrieval, zero-shot classification, captions, and a baseline.

Everything here works on numpy arrays and strings, knows no model, and reports each number with the
score that knowing nothing would get. Two metrics of the same embeddings are equal whatever the row
order, block size or machine.
"""
