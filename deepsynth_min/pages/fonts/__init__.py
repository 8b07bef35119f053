"""Font files: bytes, faces, the chain that has a glyph for each character, kerning pairs."""
