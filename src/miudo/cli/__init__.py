"""The command line: one file a verb group, thin and lazy.

For: parse, call one library function, print.
Not for: work of its own.
Read next: `miudo.cli.main`.
"""

__all__: list[str] = []
