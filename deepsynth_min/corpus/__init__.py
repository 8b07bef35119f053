"""The embedded documents, (text, summary) pairs: reports in four languages, notices, needles."""
