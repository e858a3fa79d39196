"""What a process gives back of its memory, it can do without."""

import sys

import numpy as np
import pytest

from fairlead.backends.memory import _clean_code, release_program_text, resident_bytes

CODE = """\
7f00-7f10 r-xp 00000000 08:01 12 /usr/lib/one.so
Rss: 16 kB
Private_Dirty: 0 kB
7f10-7f20 r-xp 00000000 08:01 12 /usr/lib/patched in place.so
Private_Dirty: 4 kB
7f20-7f30 r--p 00000000 08:01 12 /usr/lib/one.so
Private_Dirty: 0 kB
7f30-7f40 rw-p 00000000 00:00 0 [heap]
Private_Dirty: 0 kB
7f40-7f50 r-xp 00000000 00:00 0 [vdso]
Private_Dirty: 0 kB
"""


def test_only_unchanged_code_of_files_is_given_back():
    assert list(_clean_code(CODE)) == [(0x7F00, 0x7F10)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back on request")
def test_a_process_that_gave_its_code_back_goes_on():
    before = np.linalg.svd(np.eye(8))[1].sum()
    held = resident_bytes()
    assert release_program_text() > 1 << 20
    assert resident_bytes() < held
    assert np.linalg.svd(np.eye(8))[1].sum() == before
