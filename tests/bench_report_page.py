"""The report of an invented result, and what a page is made of."""

from __future__ import annotations

import re
from array import array
from html.parser import HTMLParser

import numpy as np

from msn_deploy.bench import MeasureOptions, Profile, Samples, compare
from msn_deploy.bench.measure import ArmFacts, ArmSamples
from msn_deploy.machine.environment import Environment

VOID = {"meta", "link", "br", "img", "hr", "wbr"}


def result_of(levels_ms, *, rounds=12, queries=30, noise=0.01, facts=None, environment=None):
    random = np.random.default_rng(3)
    arms = []
    for name, level in levels_ms.items():
        raw = (1e6 * level * random.lognormal(0, noise, (2 * rounds, queries))).astype(int).tolist()
        starts = tuple(int(5e7 * at) for at in range(2 * rounds))
        known = facts or ArmFacts(sha256="cd" * 32, folded="unfolded" not in name)
        blocks = tuple(array("q", block) for block in raw)
        arms.append(
            ArmSamples(name=name, facts=known, blocks=blocks, block_starts_ns=starts, slots=tuple(range(2 * rounds)))
        )
    return compare(
        Samples(arms=tuple(arms), options=MeasureOptions()),
        baseline=next(iter(levels_ms)),
        environment=environment or Environment(cpu="a processor", load_average=(0.1, 0.2, 0.3)),
        profile=Profile(provider="cpu", threads=2),
    )


THREE = {"BN unfolded": 1.3, "BN folded": 1.0, "MSN folded": 1.0}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))
