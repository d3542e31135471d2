"""Loss surfaces of runs: drawn, computed, kept, explained and exported."""
