"""Memory of a model that is no longer needed, back to the machine before the next one comes."""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20  # bytes


def large_blocks_go_back() -> None:
    """From now on, each block of a megabyte or more goes back to the machine when it is freed.

    glibc otherwise raises that size to 32 MB by itself, and between the tensors of a model smaller
    than that, what is free stays in pieces: 500 MB of onnxruntime's 900 for one clip of AudioMAE.
    For the whole process and for good, so it is for a verb to call, not for a library's function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def give_back() -> None:
    """Frees what only cycles refer to, and has the C library return what it keeps.

    glibc keeps freed blocks of up to 32 MB for itself, which is most of a transformer's weights.
    Where there is another C library, nothing more than the collection happens.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
