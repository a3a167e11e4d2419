"""The ridge baseline on a prepared dataset, in the rows and on the clips of an evaluation."""

from __future__ import annotations

from alm_jax.evaluation_data import Clips
from alm_jax.evaluation_suite import Results, retrieval_results
from alm_jax.evaluators.ridge import FEATURES, PROTOCOL, fit_ridge, log_mel_statistics
from input_pipeline.audio_files import SAMPLE_RATE

NAMES = {"bands": "ridge", "covariances": "ridge_covariances"}
_CHUNK = 512


def ridge_results(test: Clips, train_split: str, validation_split: str) -> Results:
    """Retrieval by ridge regression fitted on the training split of the test clips' dataset.

    Args:
      test: the clips to score on.
      train_split: split to fit on.
      validation_split: split to choose the penalty on.

    Returns:
      Rows `baseline/ridge/retrieval...` and `baseline/ridge_covariances/retrieval...`; none where
      the audio is not at 16 kHz, for which the statistics are defined.
    """
    if test.sample_rate not in (None, SAMPLE_RATE):
        return {}
    splits = [Clips.read(test.directory, split) for split in (train_split, validation_split)]
    statistics = [
        log_mel_statistics(
            audio
            for chunk in clips.audio_chunks(f"statistics of {clips.split}", _CHUNK)
            for audio in chunk
        )
        for clips in (*splits, test)
    ]
    captions = [clips.column("text") for clips in splits]
    # The penalty is chosen on the kind of clips that the main numbers are about.
    recorded = splits[1].subsets[""][1]
    results: Results = {}
    for features in FEATURES:
        train, validation, held_out = (group[features] for group in statistics)
        ridge = fit_ridge(
            train, captions[0].tolist(), validation[recorded], captions[1][recorded].tolist()
        )
        rows = retrieval_results(
            ridge.embed_audio(held_out),
            ridge.embed_text(test.captions),
            test,
            f"baseline/{NAMES[features]}/retrieval",
        )
        made = PROTOCOL.format(features=features, penalty=ridge.penalty)
        results |= {name: row | {"model": made} for name, row in rows.items()}
    return results
