"""Models in and out: the PyTorch export and reading it back."""

from pathlib import Path


def torch_modelling_path() -> Path:
    """The modelling file that is copied into every export."""
    return Path(__file__).with_name("torch_modelling.py")
