"""Ctrl-C and the signals of schedulers: the run saves and ends; once more, and it ends at once.

In: SIGINT (Ctrl-C), SIGTERM, SIGUSR1. Out: `Stopper.asked`, which the loop looks at once a step.

The one idea: a launcher passes on what the processes may have got already (torchrun does, and SLURM
signals all of them itself), so one wish to stop can arrive twice. What comes within AGAIN_SECONDS
of the first is therefore the same wish. Of which kind a later signal is does not matter: torchrun
turns a second Ctrl-C into SIGTERM.

The interpreter writes each signal's number into a pipe (`signal.set_wakeup_fd`) even while the main
thread is in the middle of a matrix product or waits for another process; a thread reads it there.
"""

import os
import signal
import sys
import threading
import time

from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AGAIN_SECONDS = 2.0
STOPPING = "stopping: saving a checkpoint after this step or evaluation; again to stop at once"


class Stopper:
    """While it is entered, signals set `asked`; a later one ends the process, with exit code 128 +
    its number. speaks: whether this process says so on stderr."""

    def __init__(self, speaks: bool = True):
        self.asked, self.speaks = False, speaks
        self.signal = 0  # the number of the one that asked

    def __enter__(self) -> "Stopper":
        reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self.pipe_before = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.pipe_before)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.writing)  # ends the thread

    def _listen(self, reading: int) -> None:
        first = None
        while received := os.read(reading, 1):
            number, now = received[0], time.monotonic()
            if number not in SIGNALS:
                continue
            if first is None:
                first, self.signal, self.asked = now, number, True
                self._say(STOPPING)
            elif now - first >= AGAIN_SECONDS:
                self._say("stopped")
                os._exit(128 + number)
        os.close(reading)

    def _say(self, text: str) -> None:
        if self.speaks:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()
