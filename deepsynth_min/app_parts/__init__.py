"""The page to try a model on: what may be asked, what its tabs show, and their controls."""
