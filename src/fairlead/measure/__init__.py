"""Numbers: latency, quality, distances and tests, free of any library but numpy."""
