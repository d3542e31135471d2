"""Data sets: where examples come from, how they are split, corrupted and checked."""
