"""deepsynth_min: fine-tune DeepSeek-OCR to read rendered text, in plain PyTorch.

README.md beside this file is the map: which folder holds what, what to read first, how to change X.
"""

import os
import sys

__version__ = "0.1.0"


def _without_traceback(kind: type, error: BaseException, trace: object) -> None:
    """Ctrl-C while a command is still importing: afterwards errors.exit_code takes care of it."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # `python -m deepsynth_min.COMMAND`, before the command's own imports
    sys.excepthook = _without_traceback
