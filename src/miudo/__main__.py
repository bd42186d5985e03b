"""`python -m miudo` is `miudo`."""

from miudo.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
