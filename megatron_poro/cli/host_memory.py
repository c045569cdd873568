"""How a process that trains on a CPU uses its memory.

glibc takes large blocks from the kernel one by one and gives them back when they are freed. A training step frees and
takes the same blocks again and again, so without this each step waits for the kernel to clear every page of them anew.
"""

import ctypes
import os

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it frees, in huge pages where torch can; to be called before memory is used.

    Returns:
        Whether the C library can do so: glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")  # torch reads it when it first allocates a large block
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    # no block in a mapping of its own, and nothing given back from the end of the heap: malloc_trim(3), mallopt(3)
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
