"""A run: its directory, its checkpoints in time, what it says of itself, and reading it again."""
