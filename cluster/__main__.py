"""`python -m cluster` is the command `podium`."""

from cluster.cli import main

if __name__ == "__main__":
    main()
