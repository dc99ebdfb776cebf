"""`python -m graphsurgery`, where the folder of the console script is not on the path."""

from graphsurgery.cli import main

if __name__ == "__main__":
    main()
