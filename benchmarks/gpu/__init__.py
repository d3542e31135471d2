"""The prepared script for a GPU, `make gpu`: what must be equal there, what it takes, and what cannot run here."""
