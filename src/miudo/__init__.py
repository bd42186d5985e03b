"""miudo makes small language models out of big ones and runs them on ordinary hardware.

Nothing is imported here beyond the version: `import miudo` stays cheap, and each room is
imported by its own name (`from miudo.config import ModelConfig`).
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
