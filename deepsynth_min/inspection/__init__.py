"""What check.py measures of data before anything trains on it, and how it is shown."""
