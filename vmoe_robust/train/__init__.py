"""Training: state, step, optimizer and the loop."""
