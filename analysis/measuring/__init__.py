"""Taking measures: of one checkpoint, of many in parallel, and never twice."""
