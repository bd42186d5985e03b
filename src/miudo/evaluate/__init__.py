"""How good, how big and how fast a model is, measured through the Engine protocol.

For: perplexity, divergence from another model, speed, memory and energy.
Not for: training's own held-out loss (`miudo.train`) or PyTorch models as such.
Read next: `miudo.evaluate.perplexity`, then `miudo.evaluate.compare`.
"""

__all__: list[str] = []
