"""Zero-shot numbers against plain loops."""

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.zero_shot import build_prompts, ensemble_prompts, zero_shot_metrics

NAMES = ["dog bark", "rain", "engine", "violin", "never heard"]


def problem(seed=0, n=70):
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(5, 12))
    label = rng.choice(4, n, p=[0.6, 0.2, 0.1, 0.1])
    return classes[label] + 1.5 * rng.normal(size=(n, 12)), classes, label


def metrics(audio, classes, label, **kwargs):
    results = zero_shot_metrics(
        audio, classes, label, NAMES, prompts=["the sound of {a}"], **kwargs
    )
    return {name.removeprefix("eval/zero_shot/"): row for name, row in results.items()}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_numbers_equal_plain_loops():
    """Accuracy would be reported for another question than the one asked."""
    audio, classes, label = problem()
    score = unit(audio) @ unit(classes).T
    answer = score.argmax(axis=1)
    recalls, precisions = [], []
    for c in range(4):
        recalls.append(np.mean(answer[label == c] == c))
        order = np.argsort(-score[:, c])
        hits = np.flatnonzero(label[order] == c) + 1
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
    rows = metrics(audio, classes, label)
    assert rows["accuracy"]["value"] == pytest.approx(np.mean(answer == label))
    assert rows["macro_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert rows["mAP"]["value"] == pytest.approx(np.mean(precisions))
    assert rows["majority_share"]["value"] == pytest.approx(np.bincount(label).max() / 70)
    assert rows["accuracy"]["chance"] == 0.2
    for row in rows.values():
        assert (row["n_clips"], row["n_classes"], row["prompt"]) == (70, 5, "the sound of {a}")


def test_labels_by_name_and_any_order_give_the_same_numbers():
    """The row order of the test set would change the result."""
    audio, classes, label = problem()
    expected = metrics(audio, classes, label)
    assert metrics(audio, classes, [NAMES[c] for c in label]) == expected
    order = np.random.default_rng(1).permutation(70)
    assert metrics(audio[order], classes, label[order]) == expected


def test_a_collapsed_model_is_never_right():
    """Argmax over equal scores answers class 0, the majority class by accident."""
    _, _, label = problem()
    rows = metrics(np.ones((70, 12)), np.ones((5, 12)), label)
    assert rows["accuracy"]["value"] == rows["macro_accuracy"]["value"] == 0
    assert rows["mAP"]["value"] < rows["mAP"]["chance"]


def test_chance_is_what_random_embeddings_score():
    """The chance beside mAP depends on the class sizes; a flat 1/classes would be wrong."""
    rng = np.random.default_rng(0)
    label = problem()[2]
    runs = [
        metrics(rng.normal(size=(70, 12)), rng.normal(size=(5, 12)), label, intervals=False)
        for _ in range(200)
    ]
    for name in ("accuracy", "macro_accuracy", "mAP"):
        seen = np.array([run[name]["value"] for run in runs])
        assert abs(seen.mean() - runs[0][name]["chance"]) < 4 * seen.std() / np.sqrt(200), name


def test_prompts():
    """The text side would be asked something else than what is printed beside the number."""
    prompts = build_prompts(["acoustic_guitar", "ukulele"], ["{a} playing a note", "{}, music"])
    assert prompts == [
        "an acoustic guitar playing a note",
        "acoustic guitar, music",
        "a ukulele playing a note",
        "ukulele, music",
    ]
    with pytest.raises(UserError, match="no place for the class"):
        build_prompts(["dog"], ["a sound"])
    with pytest.raises(UserError, match="at least one"):
        build_prompts(["dog"], [])


def test_prompt_ensemble_is_the_mean_direction():
    """Longer prompt vectors would outvote the others."""
    text = np.array([[2.0, 0], [0, 5.0], [0, -1.0], [0, -3.0]])
    assert ensemble_prompts(text, 2) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, -1.0]]))
    with pytest.raises(UserError, match="not 3 for each class"):
        ensemble_prompts(text, 3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0] * 69, "as many labels"),
        ([5] * 70, "outside 0..4"),
        ([-1] * 70, "outside 0..4"),
        (["cat"] * 70, "'cat'"),
    ],
)
def test_wrong_labels_are_explained(label, message):
    """Unlabelled clips must not be scored as class 0 or -1."""
    audio, classes, _ = problem()
    with pytest.raises(UserError, match=message):
        metrics(audio, classes, label)
    with pytest.raises(UserError, match="class names"):
        zero_shot_metrics(audio, classes, [0] * 70, ["a"] * 5, prompts=["{}"])
