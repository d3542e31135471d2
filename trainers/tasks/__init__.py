"""What is learned: losses of a batch, and the scores of a model on a split."""
