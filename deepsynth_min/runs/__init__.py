"""A run: setting it up, what it says of itself, its metrics, and reading it again."""
