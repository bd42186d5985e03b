"""What a model is asked, one file a kind of task, all as samples with choices.

For: turning files of benchmarks and plain text into prompts, choices and right answers.
Not for: scoring them (`miudo.evaluate.harness`).
Read next: `miudo.evaluate.tasks.task`, then `miudo.evaluate.tasks.catalogue`.
"""

__all__: list[str] = []
