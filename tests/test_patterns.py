"""Regular expressions that users give for names of parameters."""

import jax.numpy as jnp
import pytest

from alm_jax import freezing, optim
from alm_jax.errors import UserError

PARAMS = {"audio": {"kernel": jnp.zeros(2)}, "text": {"bias": jnp.zeros(2)}}


@pytest.mark.parametrize(
    "key, use",
    [
        ("optim.lr_multipliers", lambda text: optim.multipliers(PARAMS, ((text, 0.1),))),
        ("optim.not_decayed", lambda text: optim.decay_mask(PARAMS, (text,))),
        ("optim.frozen", lambda text: freezing.frozen_names(PARAMS, (text,))),
    ],
)
def test_what_is_no_regular_expression_is_named(key, use):
    """A missing bracket would end in a traceback of the standard library that names no field."""
    with pytest.raises(UserError, match=rf"^{key}: '\(audio' is no regular expression: missing \)"):
        use("(audio")
