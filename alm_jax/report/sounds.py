"""Sounds inside a page: PCM -> data URI."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile
from numpy.typing import NDArray


def data_uri(pcm: NDArray[np.int16], sample_rate: int, *, max_seconds: float = 10.0) -> str:
    """A sound as `data:audio/...;base64,...`.

    MP3, which every browser plays and which takes a tenth of the samples' size; WAV where
    libsndfile was built without its encoder, or for a sound too short for an MP3 frame.

    Args:
      pcm: int16 [S] mono.
      sample_rate: in Hz.
      max_seconds: the rest of a longer sound is left out.
    """
    pcm = pcm[: round(max_seconds * sample_rate)]
    mp3 = "MP3" in soundfile.available_formats() and len(pcm) >= sample_rate // 10
    file = io.BytesIO()
    if mp3:
        soundfile.write(file, pcm, sample_rate, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(file, pcm, sample_rate, format="WAV", subtype="PCM_16")
    kind = "mpeg" if mp3 else "wav"
    return f"data:audio/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
