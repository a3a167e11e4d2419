"""The protocols `knn` and `classes`: what they compare, and what they refuse."""

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.protocol_runs import run
from alm_jax.evaluators.protocols import find_protocols
from alm_jax.evaluators.session import Session
from tests.model_fixtures import clap_model


class Loudness:
    """Embeds a clip by its level, so that its neighbours are the clips as loud as it is."""

    sample_rate, has_text, classes = 16000, False, ()

    def __init__(self):
        self.config = clap_model().config

    def embed_audio(self, clips, sample_rate=None, *, batch_size=1):
        level = [np.log(1.0 + np.abs(clip.astype(np.float64)).mean()) / 8 for clip in clips]
        return np.stack([np.cos(level), np.sin(level)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def session(tiny_dataset):
    return Session(Loudness(), tiny_dataset, "validation[:40]")


def one(name):
    return find_protocols(name)[0]


def test_neighbours_are_training_clips(session):
    """A model without text could not be measured, or would be compared with the clip itself."""
    rows = run(one("knn:zeroshot_label"), session, None)
    assert {name.split("/")[1] for name in rows} == {"knn[k=1]", "knn[k=10]"}
    # The same from the definition, for one neighbour.
    train, asked = session.training_clips("train", text=False), session.clips("", text=False)
    known, wanted = train.column("zeroshot_label"), asked.column("zeroshot_label")
    cosine = session.audio(asked).astype(float) @ session.audio(train)[known != ""].astype(float).T
    answers = known[known != ""][np.argmax(cosine, axis=1)]
    right = (answers == wanted)[wanted != ""]
    row = rows["eval/knn[k=1]/accuracy"]
    assert row["value"] == pytest.approx(right.mean()) and row["n_clips"] == len(right)
    assert row["gallery"] == f"{(known != '').sum():,} labelled clips of 'train'"
    assert "split" in row and "dataset_fingerprint" in row


def test_what_cannot_be_measured_is_said(session, tiny_dataset):
    """Every clip is nearest to itself: the accuracy would be 1."""
    with pytest.raises(UserError, match=r"every clip is nearest to itself; give another --split"):
        run(one("knn:zeroshot_label"), Session(Loudness(), tiny_dataset, "train"), None)
    with pytest.raises(UserError, match=r"trained on labels.*config\.data\.labels"):
        run(one("classes"), session, None)
    with pytest.raises(UserError, match=r"trained without text"):
        run(one("any-retrieval"), session, None)
