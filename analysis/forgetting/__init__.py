"""Forgetting: of examples during training, and of what a perturbation of the weights makes a model forget."""
