"""Record hard frames of a flight to bags, for the next training."""
