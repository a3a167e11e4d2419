"""What a training step costs, found out without the machine it is for; see `alm_jax.plan`."""
