"""The measures of a checkpoint, by name: each a function from a `Subject` to rows of the table."""
