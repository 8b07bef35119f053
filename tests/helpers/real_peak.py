"""The memory that a training step really takes on the CPU: a process of its own measures it.

In: command lines of trainings, a JSON list of lists of words, as the only argument. Out: for each,
as JSON, the most bytes that torch's allocator had given out at any time in the second step of the
run, by the events of torch's profiler, which has watched since before the model was made.
"""

import json
import sys

from torch.profiler import ProfilerActivity, profile, record_function

from deepsynth_min import train
from deepsynth_min.command_line import parse
from deepsynth_min.data.loader import Loader
from deepsynth_min.runs.setup import Training
from deepsynth_min.training.distributed import start


def two_steps(words: list[str]) -> None:
    settings = parse(words)
    run = settings.run
    training = Training(settings, start(run.device, run.threads, run.timeout), None)
    loader = Loader(training.rows, training.builder, training.settings)
    for _ in range(2):
        batches = next(loader)
        count = sum(batch.num_scored for batch in batches)
        with record_function("a step"):
            train.train_step(training, batches, count, sum(len(batch.pages) for batch in batches))
    loader.close()
    training.directory.release()


def peak(words: list[str]) -> int:
    """Bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        two_steps(words)
    steps, memory = [], []
    left = list(profiler.profiler.kineto_results.experimental_event_tree())
    while left:
        event = left.pop()
        left += event.children
        if event.name == "a step":
            steps.append((event.start_time_ns, event.end_time_ns))
        elif event.name == "[memory]":
            memory.append((event.start_time_ns, event.extra_fields.total_allocated))
    begin, end = max(steps)
    return max(size for time, size in memory if begin <= time <= end)


if __name__ == "__main__":
    print(json.dumps([peak(words) for words in json.loads(sys.argv[1])]))
