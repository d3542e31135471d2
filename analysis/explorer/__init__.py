"""The explorer: one page for a browser, on which a study's runs are chosen, and what that does to its correlations."""
