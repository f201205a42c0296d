"""`python -m bayesarch` is `bayesarch`."""

from bayesarch.cli import start

if __name__ == "__main__":
    start()
