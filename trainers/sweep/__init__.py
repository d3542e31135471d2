"""Many runs: which there are, and the processes that train them."""
