"""Texts of three kinds to measure on, from what any machine has: JSON lines with documents of about 3,000 characters.

``code`` is Python sources, ``prose`` the manual pages and other documentation of the system, ``inflected`` is made up:
Finnish stems and compounds with the endings of case, number, owner and particle, frequent and rare as the words of a
language are. Each is the same on one machine, however often it is made; none is endless but the last.
"""

import gzip
import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

DOCUMENT_CHARACTERS = 3000

_SYSTEM_TEXTS = (Path("/usr/share/man"), Path("/usr/share/doc"), Path("/usr/share/info"))
_STEMS = """
    talo kala maa vesi järvi metsä kylä kaupunki ihminen lapsi äiti isä koira kissa hevonen päivä yö aamu ilta vuosi
    kuukausi viikko työ koulu kirja sana kieli laulu runo tarina matka tie silta laiva vene auto juna pyörä ovi ikkuna
    huone keittiö pöytä tuoli sänky valo varjo tuli savu tuuli sade lumi jää aurinko kuu tähti taivas meri ranta saari
    kivi hiekka puu lehti kukka marja omena leipä maito juusto liha suola kahvi tee sokeri raha kauppa hinta laki valta
"""
# from the most to the least frequent
_LINKS = ("", "n", "s", "nen", "llis", "ton", "us")
_CASES = ("", "n", "a", "ssa", "t", "sta", "lla", "ja", "jen", "ksi", "lle", "lta", "issa", "ista", "na", "tta", "ihin")
_OWNERS = ("", "nsa", "ni", "mme", "si", "nne")
_PARTICLES = ("", "kin", "ko", "kaan", "han", "pa")
_MARKS = (" ", ", ", ". ", ".\n", "? ", " – ")


def write(kind: str, target: Path, megabytes: float) -> None:
    """Fills a file with texts of one kind, or with as many as there are."""
    with open(target, "wb") as file:
        for text in TEXTS[kind]():
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                document = {"text": text[start : start + DOCUMENT_CHARACTERS]}
                file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
                if file.tell() >= megabytes * 1e6:
                    return


def _code() -> Iterator[str]:
    for place in ("stdlib", "purelib"):
        for path in _in_any_order(Path(sysconfig.get_paths()[place]), ".py"):
            yield path.read_text(encoding="utf-8", errors="replace")


def _prose() -> Iterator[str]:
    for place in _SYSTEM_TEXTS:
        for path in _in_any_order(place, ".gz"):
            yield gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")


def _in_any_order(place: Path, suffix: str) -> list[Path]:
    """Files below a folder, mixed, so that any part of them stands for all."""
    paths = sorted(path for path in place.rglob(f"*{suffix}") if path.is_file())
    random.Random(0).shuffle(paths)
    return paths


def _inflected() -> Iterator[str]:
    choices = random.Random(0)
    simple = _STEMS.split()
    stems = simple + [first + link + second for first in simple for second in simple for link in _LINKS]
    choices.shuffle(stems)
    while True:
        parts = [_drawn(choices, of, DOCUMENT_CHARACTERS // 8) for of in (stems, _CASES, _OWNERS, _PARTICLES, _MARKS)]
        yield "".join("".join(word) for word in zip(*parts, strict=True))


def _drawn(choices: random.Random, of: Sequence[str], count: int) -> list[str]:
    """As Zipf's law has it: the hundredth is a hundred times rarer than the first."""
    return choices.choices(of, cum_weights=list(accumulate(1 / rank for rank in range(1, len(of) + 1))), k=count)


TEXTS: dict[str, Callable[[], Iterator[str]]] = {"prose": _prose, "code": _code, "inflected": _inflected}
