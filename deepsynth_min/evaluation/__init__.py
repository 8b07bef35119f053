"""Held-out loss, whether the model reads its page, and how near its answers are."""
