"""Data files as people have them -> rows of named values."""
