"""Score of a flight: detections against ground truth, offline and streaming."""
