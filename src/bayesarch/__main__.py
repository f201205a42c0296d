"""`python -m bayesarch` is `bayesarch`."""

from bayesarch.cli import main

if __name__ == "__main__":
    main()
