"""The measures themselves: each a function from a `Subject` to rows of the table."""
