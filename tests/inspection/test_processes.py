"""Processes that read rows, and Ctrl-C."""

import os
import signal
import threading

import pytest

from deepsynth_min.inspection.processes import ctrl_c_waits


def test_ctrl_c_taken_by_another_thread_waits_until_processes_are_started():
    ends = threading.Event()
    other = threading.Thread(target=ends.wait)  # does not block the signal, so it takes it
    other.start()
    done = False
    try:
        with pytest.raises(KeyboardInterrupt):
            with ctrl_c_waits():
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):  # Python runs handlers between instructions
                    pass
                done = True
    finally:
        ends.set()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other.join()
