"""Around the step: building, precision, optimizer, processes, checkpoints, the run directory."""
