"""Memory of a model that is no longer needed, back to the machine before the next one comes."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Frees what only cycles refer to, and has the C library return what it keeps.

    glibc keeps freed blocks of up to 32 MB for itself, which is most of a transformer's weights.
    Where there is another C library, nothing more than the collection happens.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
