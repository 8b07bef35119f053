"""The embedded documents, (text, summary) pairs: reports in four languages, and notices."""
