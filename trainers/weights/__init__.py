"""Weights from elsewhere: where they lie, which of a file's are taken, and how they fit a model."""
