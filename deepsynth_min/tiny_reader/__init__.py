"""How the embedded model was made, and its weights."""
