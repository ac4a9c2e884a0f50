"""Record hard frames of a flight to bags, for the next training."""

# Begins the response of ~/record while the last bag is being finished.
BUSY = "cannot record yet"
