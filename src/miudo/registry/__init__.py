"""What models are and where they came from, told from their files and records.

For: `miudo show`; later the index over many models.
Not for: measuring (`miudo.evaluate`) or writing records (`miudo.records`).
Read next: `miudo.registry.describe`.
"""

__all__: list[str] = []
