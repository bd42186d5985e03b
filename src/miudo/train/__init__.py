"""Training: one loop, resumable to the bit.

For: pretraining, distillation, recovery and fine-tuning, which differ in their loss alone.
Not for: the model (`miudo.decoder`) or the data (`miudo.data`).
Read next: `miudo.train.loop`.
"""

__all__: list[str] = []
