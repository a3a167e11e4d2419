"""Scoring a model on a split: which clips, which classes, which names."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alm_jax
from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips, zero_shot_tasks
from alm_jax.evaluators.files import load_evaluation, save_evaluation
from alm_jax.evaluators.in_training import make_evaluator
from alm_jax.evaluators.linear.evaluate import ridge_results
from alm_jax.evaluators.results import flatten_results
from alm_jax.evaluators.suite import (
    Evaluation,
    caption_results,
    embed_clips,
    evaluate_split,
    retrieval_results,
    zero_shot_results,
)
from alm_jax.parallel.mesh import make_mesh
from alm_jax.train_state import make_setup
from tests.model_fixtures import clap_model, tiny_tokenizer

WIDTH = 2048


class Oracle:
    """Embeds a text by its words, and a clip by the words that it is told for it."""

    sample_rate = 16000

    def __init__(self, told: dict[bytes, str]):
        self.told = told

    def embed_audio(
        self, clips: Any, sample_rate: float | None = None, *, batch_size: int = 16
    ) -> np.ndarray:
        assert sample_rate == 16000
        return self.embed_text([self.told[clip.tobytes()] for clip in clips])

    def embed_text(self, strings: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        rows = np.zeros((len(strings), WIDTH), np.float32)
        for row, text in zip(rows, strings, strict=True):
            for word in text.lower().replace(",", " ").split():
                rng = np.random.default_rng([ord(c) for c in word])
                row += rng.standard_normal(WIDTH)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def clips(tiny_dataset: Path) -> Clips:
    return Clips.read(tiny_dataset, "test")


@pytest.fixture(scope="module")
def oracle(clips: Clips) -> Oracle:
    audio = clips.audio(range(len(clips)))
    return Oracle({a.tobytes(): e["text"] for a, e in zip(audio, clips.examples, strict=True)})


def test_main_numbers_are_about_recorded_clips(clips: Clips, oracle: Oracle) -> None:
    """The headline would be about 158 rendered notes instead of the 34 recordings beside them."""
    audio, text = embed_clips(oracle, clips), oracle.embed_text(clips.captions)
    rows = retrieval_results(audio, text, clips)
    notes = [".sf2#" in e["id"] for e in clips.examples]
    recorded = {e["text"] for e, note in zip(clips.examples, notes, strict=True) if not note}
    main = rows["eval/retrieval/audio_to_text/R@1"]
    assert main["n_clips"] == notes.count(False) and main["n_captions"] == len(recorded)
    assert main["value"] == 1.0 and 0 < main["chance"] < 0.1
    assert main["clips"] == "recorded clips" and main["split"] == "test" and main["prompt"]
    everything = rows["eval/retrieval_with_notes/audio_to_text/R@1"]
    assert everything["n_clips"] == len(clips)
    assert not [name for name in rows if "_speech/" in name]  # the tiny tier has none


def test_zero_shot_classes_are_those_of_the_whole_index(clips: Clips, oracle: Oracle) -> None:
    """Accuracy would be out of another number of classes in every tier, and not comparable."""
    tasks = {task.name: task for task in zero_shot_tasks(clips)}
    assert len(tasks["effects"].classes) == 44
    assert len(tasks["general_midi"].classes) == 128
    for name, task in tasks.items():
        labels = [clips.examples[i]["zeroshot_label"] for i in task.clips]
        assert labels == list(task.labels) and "" not in labels
        assert all(
            (".sf2#" in clips.examples[i]["id"]) == (name == "general_midi") for i in task.clips
        )
    audio = embed_clips(oracle, clips)
    rows, answers = zero_shot_results(oracle, audio, clips)
    accuracy = rows["eval/zero_shot/general_midi/accuracy"]
    assert accuracy["value"] > 0.9 and accuracy["chance"] == pytest.approx(1 / 128)
    assert "playing the note" in accuracy["prompt"]
    for found in answers:
        right = np.mean([a == b for a, b in zip(found.answers, found.task.labels, strict=True)])
        assert right == rows[f"eval/zero_shot/{found.task.name}/accuracy"]["value"]


def test_captions_are_scored_against_their_own_clip(clips: Clips) -> None:
    """A shift by one clip would make every caption score nothing."""
    true = clips.column("text").tolist()
    perfect = caption_results(true, clips)
    shifted = caption_results(true[1:] + true[:1], clips)
    assert perfect["eval/captions/BLEU-4"]["value"] > 0.9
    assert perfect["eval/captions/CIDEr-D"]["value"] > 2 * shifted["eval/captions/CIDEr-D"]["value"]
    assert perfect["eval/captions_with_notes/ROUGE-L"]["n_clips"] == len(clips)


def test_a_real_model_is_scored(tiny_dataset: Path) -> None:
    """`alm eval` would fail, or rank clips against embeddings of others."""
    model = clap_model()
    found = evaluate_split(model, tiny_dataset, "test[:40]")
    assert found.audio.shape == (40, model.embed_dim)
    assert found.generated is not None and len(found.generated) == 40
    flatten_results(found.results)  # complete and finite rows
    for row in found.results.values():
        assert {"value", "chance", "protocol", "n_clips", "prompt", "split"} <= row.keys()
    some = found.clips.audio([3, 17])
    np.testing.assert_allclose(model.embed_audio(some, 16000), found.audio[[3, 17]], atol=1e-5)


def test_an_evaluation_is_read_back(clips: Clips, oracle: Oracle, tmp_path: Path) -> None:
    """The report of a resumed quickstart would show other answers than were scored."""
    audio, text = embed_clips(oracle, clips), oracle.embed_text(clips.captions)
    results, answers = zero_shot_results(oracle, audio, clips)
    written = Evaluation(results, clips, audio, text, [f"говорит {i}" for i in range(192)], answers)
    save_evaluation(written, tmp_path / "e")
    again = load_evaluation(tmp_path / "e", clips.directory, results)
    np.testing.assert_array_equal(again.audio, audio)
    np.testing.assert_array_equal(again.text, text)
    assert again.generated == written.generated
    assert [a.answers for a in again.zero_shot] == [a.answers for a in answers]
    other = dataclasses.replace(clips, fingerprint="another")
    save_evaluation(dataclasses.replace(written, clips=other), tmp_path / "f")
    with pytest.raises(UserError, match="another version"):
        load_evaluation(tmp_path / "f", clips.directory, results)


def test_a_model_without_text_is_refused(tiny_dataset: Path) -> None:
    """Scoring stage 1 would end in a traceback instead of saying what to give."""
    from tests.model_fixtures import mae_workdir

    model = alm_jax.load(mae_workdir())
    with pytest.raises(UserError, match="stage-2"):
        evaluate_split(model, tiny_dataset, "test")


@pytest.mark.slow
def test_ridge_beats_chance_on_the_same_clips(clips: Clips) -> None:
    """The baseline would be computed on other clips than the model, or not at all."""
    rows = ridge_results(clips, "train", "validation")
    for name in ("ridge", "ridge_whitened"):
        row = rows[f"baseline/{name}/retrieval_with_notes/audio_to_text/R@10"]
        assert row["n_clips"] == len(clips) and row["value"] > 5 * row["chance"]
        assert f"baseline/{name}/retrieval/text_to_audio/R@1" in rows
        assert "chosen on validation" in row["model"]


def test_training_is_not_measured_on_one_clip(tiny_dataset: Path) -> None:
    """R@1 of one clip is 100 % from the first step: `keep_best` would keep an untrained model."""
    config = clap_model().config
    config.data.dir, config.data.eval_split = str(tiny_dataset), "validation[:1]"
    tokenizer = tiny_tokenizer()
    setup = make_setup(config, tokenizer.vocab_size, make_mesh(config.mesh))
    with pytest.raises(UserError, match=r"split 'validation\[:1\]', has one clip"):
        make_evaluator(config, setup, tokenizer)
