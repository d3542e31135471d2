"""Study files, and the pages that say what came of them."""
