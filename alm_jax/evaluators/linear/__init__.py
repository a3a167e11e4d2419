"""A baseline without a network: ridge regression from statistics of a sound to its caption."""
