"""What a process gives back of its memory, it can do without."""

import sys

import numpy as np
import pytest

from fairlead.backends.memory import _clean_parts, release_program_text, resident_bytes

PARTS = """\
7f00-7f10 r-xp 00000000 08:01 12 /usr/lib/one.so
Rss: 16 kB
Private_Dirty: 0 kB
7f10-7f20 r-xp 00000000 08:01 12 /usr/lib/patched in place.so
Private_Dirty: 4 kB
7f20-7f30 r--p 00000000 08:01 12 /usr/lib/one.so
Private_Dirty: 0 kB
Anonymous: 0 kB
Swap: 0 kB
7f30-7f40 r--p 00000000 08:01 12 /usr/lib/relocated.so
Private_Dirty: 0 kB
Anonymous: 0 kB
Swap: 4 kB
7f40-7f50 r--p 00000000 08:01 12 /usr/lib/read again from swap.so
Private_Dirty: 0 kB
Anonymous: 4 kB
7f50-7f60 r--p 00000000 08:01 12 /models/weights.bin
Private_Dirty: 0 kB
7f60-7f70 rw-p 00000000 00:00 0
Private_Dirty: 8 kB
7f70-7f80 rw-p 00000000 00:00 0 [heap]
Private_Dirty: 0 kB
7f80-7f90 r-xp 00000000 08:01 12 /usr/lib/last.so.2
Private_Dirty: 0 kB
7f90-7fa0 r-xp 00000000 00:00 0 [vdso]
Private_Dirty: 0 kB
"""


def test_only_unchanged_parts_of_libraries_are_given_back():
    assert list(_clean_parts(PARTS)) == [(0x7F00, 0x7F10), (0x7F20, 0x7F30), (0x7F80, 0x7F90)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back on request")
def test_a_process_that_gave_its_code_back_goes_on():
    before = np.linalg.svd(np.eye(8))[1].sum()
    held = resident_bytes()
    assert release_program_text() > 1 << 20
    assert resident_bytes() < held
    assert np.linalg.svd(np.eye(8))[1].sum() == before
