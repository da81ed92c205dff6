"""Metrics: replies and expected answers -> a score per question, and confidence intervals."""
