"""What a flight was worth: detections against ground truth, by the frame and by the pilot."""
