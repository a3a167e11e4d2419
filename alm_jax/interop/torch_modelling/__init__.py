"""The model in PyTorch, from which an export's single modelling file is assembled.

`alm_jax.interop.standalone` copies the definitions that a model needs out of these modules, so they
import nothing but the standard library, torch, numpy and each other (absolutely); a tokenizer's
package is imported where a tokenizer is made. A choice that a config makes is an entry of a table
(`TOWERS`, `POSITIONS`, ...) or a base class of `model.Parts`; entries that a model does not use are
left out of its file.
"""
