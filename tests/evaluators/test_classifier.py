"""A classifier's numbers against the official code's, and against loops."""

from pathlib import Path

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.classifier import average_precision, classifier_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "audioset_stats.npz"


def test_audioset_statistics():
    """A reproduced mAP could not be compared with AudioMAE's (util/stat.py, scikit-learn 1.9)."""
    golden = np.load(GOLDEN)
    scores, targets = golden["scores"], golden["targets"].astype(bool)
    each = [average_precision(scores[:, y], targets[:, y]) for y in range(12)]
    np.testing.assert_allclose(each, golden["AP"], rtol=1e-6)  # float32 goldens, many tied scores
    rows = classifier_metrics(scores, targets, prefix="eval/x")
    assert rows["eval/x/mAP"]["value"] == pytest.approx(0.5585756353857388, abs=1e-12)
    assert rows["eval/x/mAUC"]["value"] == pytest.approx(0.8115611066379, abs=1e-12)
    assert rows["eval/x/mAP"]["n_classes"] == 12 and rows["eval/x/mAP"]["n_clips"] == 200


def test_accuracy_and_what_takes_part():
    """A model that maps all to one point would be right, or unlabelled clips count as wrong."""
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    logits = np.array([[2, 1, 0], [0, 1, 0], [3, 0, 0], [9, 0, 0], [1, 1, 0]], float)
    rows = classifier_metrics(logits, labels, prefix="p")
    # Right, right (one of two classes), wrong, not labelled, tied.
    assert rows["p/accuracy"]["value"] == 0.5 and rows["p/accuracy"]["n_clips"] == 4
    assert rows["p/accuracy"]["chance"] == pytest.approx(5 / 4 / 3)
    assert rows["p/mAP"]["n_classes"] == 2  # no clip has the third class
    scores, right = logits[:, 0], labels[:, 0]
    steps = sorted(set(scores), reverse=True)
    recall, total = 0.0, 0.0
    for step in steps:
        above = scores >= step
        total += (right[above].sum() / right.sum() - recall) * right[above].mean()
        recall = right[above].sum() / right.sum()
    assert average_precision(scores, right) == pytest.approx(total)


def test_what_is_wrong_is_named():
    """A diverged run would report the accuracy of NaN."""
    labels = np.eye(3, dtype=bool)
    with pytest.raises(UserError, match="NaN"):
        classifier_metrics(np.full((3, 3), np.nan), labels, prefix="p")
    with pytest.raises(UserError, match="no class that some"):
        classifier_metrics(np.zeros((3, 3)), np.zeros((3, 3), bool), prefix="p")
