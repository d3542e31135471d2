"""What `landscape init` writes: a study with data and a measure of one's own, to start from."""
