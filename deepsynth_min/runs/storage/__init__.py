"""What a run keeps on disk: its directory, its checkpoints in time, their copies elsewhere."""
