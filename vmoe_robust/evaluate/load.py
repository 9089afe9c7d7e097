"""`classifier.py` under the name that `notebook.py` still imports."""

from vmoe_robust.evaluate.classifier import Classifier, checked_images, load

__all__ = ['Classifier', 'checked_images', 'load']
