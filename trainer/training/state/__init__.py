"""What a training keeps in the run's folder: its state, how workers get it back, who writes it."""
