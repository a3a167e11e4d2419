"""Starts `alm train` on one machine or many: `python -m launch TARGET ... -- TRAIN ARGUMENTS`."""
