"""The report of a study: its tables, its findings, its pages."""
