"""Metrics: replies and expected answers -> a score from 0 to 1 a question, and how sure a mean is."""
