"""Files that are whole if they exist, and reading those that may not be."""
