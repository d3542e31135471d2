"""Speed and memory, measured: `make bench` prints ratios and writes JSON."""
