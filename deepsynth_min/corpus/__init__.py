"""The embedded documents: (text, summary) pairs in four languages, made from LANGUAGE.toml."""
