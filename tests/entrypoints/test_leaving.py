"""A command that has said everything ends, whatever the libraries it loaded do at the end."""

import subprocess
import sys
import textwrap
from pathlib import Path

START = """
    import atexit, sys, threading, time
    from fairlead.entrypoints.cli import main
    sys.argv = ["fairlead", "--version"]
"""


def ended(tmp_path, code):
    program = textwrap.dedent(START) + textwrap.dedent(code) + "main()\n"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )


def test_the_interpreter_is_not_taken_apart(tmp_path):
    done = ended(
        tmp_path,
        """
        class Stuck:
            def __del__(self):
                time.sleep(3600)

        sys.modules["stuck"] = Stuck()
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        """,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("fairlead ")


def test_what_is_to_be_done_at_the_end_is_done_and_flushed(tmp_path):
    done = ended(tmp_path, "atexit.register(sys.stdout.write, 'cleared up')\n")
    assert done.stdout.endswith("cleared up")


def test_work_in_other_threads_is_waited_for(tmp_path):
    done = ended(
        tmp_path,
        """
        def work():
            time.sleep(1)
            open("done.txt", "w").close()

        threading.Thread(target=work).start()
        """,
    )
    assert done.returncode == 0
    assert (tmp_path / "done.txt").exists()


def test_an_output_that_nobody_reads_is_no_crash(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fairlead", "--version"], cwd=tmp_path, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode != 0
