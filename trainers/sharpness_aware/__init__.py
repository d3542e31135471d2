"""The SAM family: small parts (gate, radius, source, metric, mask, plan, combiner) under one engine, by name."""
