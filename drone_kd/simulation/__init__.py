"""Fly without a drone: simulated cameras, ground truth, scores. Never loaded in flight."""
