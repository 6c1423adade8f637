"""`python -m weightcast_lab` is the command `weightcast`."""

from weightcast_lab.cli import main

if __name__ == "__main__":
    main()
