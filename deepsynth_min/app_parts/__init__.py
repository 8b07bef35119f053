"""The page to try a model on: its server, what may be asked, and what the tabs show."""
