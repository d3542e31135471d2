"""Statistics that relate measures to targets: arrays in, numbers out; `correlation` for whole tables."""
