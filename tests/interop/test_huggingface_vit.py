"""The audio tower that starts from a picture's ViT, against transformers."""

import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.interop.checkpoint_files import open_checkpoint
from alm_jax.interop.huggingface_vit import FORMAT
from alm_jax.interop.importing import in_memory, to_alm
from alm_jax.models.audio_vit import AudioViT, VitConfig
from alm_jax.models.towers import patch_shape
from tests.quick_jit import quick_jit

SIDE = 8  # a picture of 8 x 8 patches


@pytest.fixture(scope="module")
def official():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16 * SIDE,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.ViTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folder(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit")
    official.save_pretrained(path)
    return path


def imported(folder, *overrides):
    return to_alm(FORMAT, open_checkpoint(folder), overrides)


def test_grey_picture(official, folder):
    """A tower that starts from a ViT would start from a scrambled one."""
    # As many patches in time as in frequency, so that no position is resampled.
    found = imported(folder, f"patches.frames={16 * SIDE}")
    grey = np.random.default_rng(0).standard_normal((1, 16 * SIDE, 16 * SIDE)).astype(np.float32)
    picture = torch.from_numpy(np.repeat(grey[:, None], 3, axis=1))
    with torch.no_grad():
        want = official(picture).last_hidden_state.numpy()
    # Frequency downwards, time to the right; our patches come column by column, time-major inside.
    grid = grey.reshape(1, SIDE, 16, SIDE, 16).transpose(0, 3, 1, 4, 2)
    place = np.arange(SIDE * SIDE, dtype=np.int32)[None]
    patches = Patches(
        grid.reshape(1, -1, 256), place // SIDE, place % SIDE, np.ones_like(place) > 0
    )
    graph, _ = nnx.split(
        nnx.eval_shape(
            lambda: AudioViT(
                VitConfig(**found.config.model.audio),
                patch_shape(found.config, 128),
                dtype=np.float32,
                rngs=nnx.Rngs(0),
            )
        )
    )
    got = quick_jit(lambda params: nnx.merge(graph, params)(patches))(found.params["audio"])
    got = np.asarray(got)
    # float32 in another order of sums.
    np.testing.assert_allclose(got[:, 0], want[:, 0], atol=2e-5)
    order = want[:, 1:].reshape(1, SIDE, SIDE, -1).transpose(0, 2, 1, 3).reshape(1, SIDE**2, -1)
    np.testing.assert_allclose(got[:, 1:], order, atol=2e-5)


def test_positions_follow_the_grid(official, folder):
    """Positions of a longer clip would be those of other places."""
    found = imported(folder, "patches.frames=512")
    table = found.params["audio"]["positions"]["table"]
    assert table.shape == (1 + 32 * 8, 32)
    own = official.embeddings.position_embeddings[0].detach().numpy()
    np.testing.assert_array_equal(table[0], own[0])
    grid = table[1:].reshape(32, 8, 32)  # time, frequency
    # Frequency has as many rows as the picture; time is stretched by four, linearly.
    row = own[1:].reshape(SIDE, SIDE, 32)[3]
    places = (np.arange(32) + 0.5) / 4 - 0.5
    stretched = np.stack([np.interp(places, np.arange(SIDE), row[:, d]) for d in range(32)], axis=1)
    np.testing.assert_allclose(grid[:, 3], stretched, atol=1e-5)


def test_facts(folder):
    """Heads cannot be seen in any tensor; a picture that is not square has unknown places."""
    with pytest.raises(UserError, match=r"model\.audio\.heads=2 contradicts"):
        imported(folder, "model.audio.heads=2")
    found = open_checkpoint(folder)
    tensors = {name: tensor.read() for name, tensor in found.tensors.items()}
    tensors["embeddings.position_embeddings"] = np.zeros((1, 51, 32), np.float32)
    with pytest.raises(UserError, match="51 positions are not"):
        to_alm(FORMAT, in_memory(tensors, found.config))
