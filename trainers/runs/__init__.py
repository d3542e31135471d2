"""One run: the loop, its state, and the folder that it leaves."""
