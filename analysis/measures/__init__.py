"""Measures of a checkpoint: what there is to measure, taking it in many processes, and never twice."""
