"""Accuracy, robustness and routing of a model over a data set."""
