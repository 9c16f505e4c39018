"""Running steps: weights, workers, and the session of one text."""
