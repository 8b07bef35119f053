"""A training whose address space ends somewhere: the limit stands for a machine's memory.

    python limited.py LIMIT ONLY_RANK train-arguments...

LIMIT in bytes, 0 for none. The most that was ever reserved stands in OUT/peak-RANK afterwards.
"""

import os
import resource
import sys
from pathlib import Path

limit, only, *arguments = sys.argv[1:]
rank = os.environ.get("RANK", "0")
if int(limit) and rank == only:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))

from deepsynth_min.train import main  # noqa: E402 (the limit is for all of it)

code = main(arguments)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
out = Path(arguments[arguments.index("--out") + 1])
(out / f"peak-{rank}").write_text(str(int(status["VmPeak"].split()[0]) * 1024))
sys.exit(code)
