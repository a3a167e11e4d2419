"""The linear baseline on a prepared dataset, in the rows and on the clips of an evaluation."""

from __future__ import annotations

from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.linear.clip_statistics import statistics_of_clips
from alm_jax.evaluators.linear.ridge import fit_linear_baseline
from alm_jax.evaluators.suite import Results, retrieval_results

NAMES = {False: "ridge", True: "ridge_whitened"}
_CHUNK = 256
_SAMPLE_RATE = 16000  # Hz, of datasets that do not state theirs


def ridge_results(test: Clips, train_split: str, validation_split: str) -> Results:
    """Retrieval by ridge regression fitted on the training split of the test clips' dataset.

    It learns from all training clips, as the model does; its strengths are chosen on the kind of
    clips that the main numbers are about.

    Args:
      test: the clips to score on.
      train_split: split to fit on.
      validation_split: split to choose the strengths on.

    Returns:
      Rows `baseline/ridge/retrieval...` (cosine of predicted and true TF-IDF) and
      `baseline/ridge_whitened/retrieval...` (the same with whitened captions, much the stronger).
    """
    train, validation = (Clips.read(test.directory, s) for s in (train_split, validation_split))
    rate = test.sample_rate or _SAMPLE_RATE
    train_rows, validation_rows, test_rows = (
        statistics_of_clips(
            (
                audio
                for chunk in clips.audio_chunks(f"statistics of {clips.split}", _CHUNK)
                for audio in chunk
            ),
            rate,
        )
        for clips in (train, validation, test)
    )
    _, chosen = validation.subsets[""]
    results: Results = {}
    for whiten, name in NAMES.items():
        model = fit_linear_baseline(
            train_rows,
            train.column("text").tolist(),
            validation_rows[chosen],
            validation.column("text")[chosen].tolist(),
            whiten=whiten,
        )
        whitening = "" if model.whitening is None else f", whitened with {model.whitening:g}"
        made = f"ridge {model.ridge:g}{whitening}, chosen on {validation_split}"
        rows = retrieval_results(
            model.embed_audio(test_rows),
            model.embed_text(test.captions),
            test,
            f"baseline/{name}/retrieval",
        )
        results |= {name: row | {"model": made} for name, row in rows.items()}
    return results
