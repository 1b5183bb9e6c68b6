"""What a training says of itself: events, speed, logs."""
