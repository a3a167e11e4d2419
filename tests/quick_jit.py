"""`jax.jit` for tests: programs that run once are compiled with little optimisation."""

import functools

import jax

from tests.quick_compilation import OPTIONS

# A gradient of a small transformer compiles five times faster like this (0.5 s instead of 2.8 s).
quick_jit = functools.partial(jax.jit, compiler_options=OPTIONS)
