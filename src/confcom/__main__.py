"""`python -m confcom` is the command line."""

from confcom.cli import main

if __name__ == "__main__":
    main()
