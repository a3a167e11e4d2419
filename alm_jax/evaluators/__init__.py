"""Numbers about a model: retrieval, zero-shot classification, captions, and a baseline.

`metrics` work on numpy arrays and strings, know no model, and report each number with the score
that knowing nothing would get. Two metrics of the same embeddings are equal whatever the row order,
block size or machine. `clips` is a held-out split as they see it. `protocols` names what is
measured, `protocol_runs` does it on a `session`'s model and data; `suite` is the quickstart's
protocol, and `in_training` runs on the train loop's schedule. `linear` is a baseline without a
network.
"""
