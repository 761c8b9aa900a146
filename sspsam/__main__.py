"""`python -P -m sspsam`: the console script, without knowing where it is installed."""

from sspsam.cli import main

if __name__ == "__main__":
    main()
