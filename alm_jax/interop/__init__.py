"""Models in and out: official checkpoints, exports, and reading those back."""
