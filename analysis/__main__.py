"""`python -m analysis`: the same as the program `landscape`."""

from analysis.cli import main

if __name__ == "__main__":
    main()
