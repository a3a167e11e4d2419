"""What an export for transformers holds beside modeling_alm.py: thin wrappers, one file a subject.

`alm_jax.interop.hf_layout` copies these files into the exported folder; there, the import of the
model's parts becomes one from the folder's own modeling_alm.py.
"""
