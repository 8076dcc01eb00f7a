"""What a simulation fails with: which rule was broken, by whom, in one sentence."""

from __future__ import annotations


class Violation(AssertionError):
    """A checker's finding. ``hosts`` are those whose last events tell the story."""

    def __init__(self, rule: str, sentence: str, *hosts: str) -> None:
        super().__init__(f"{rule}: {sentence}")
        self.rule = rule
        self.sentence = sentence
        self.hosts = frozenset(hosts)
