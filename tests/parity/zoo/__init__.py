"""The conformance list: every family's tiny models, and what is measured of each."""
