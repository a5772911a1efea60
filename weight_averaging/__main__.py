"""`python -m weight_averaging` is the command `weight-averaging`."""

from weight_averaging.interrupts import importing


def main() -> None:
    """Import the command, and run it."""
    with importing():
        from weight_averaging.cli import main as run
    run()


if __name__ == "__main__":
    main()
