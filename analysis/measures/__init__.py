"""What runs are worth: time to target, scores, speed-ups, leads."""
