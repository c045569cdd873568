"""Small raw files of each corpus of Poro 34B, of exactly the form in which it is distributed."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

Record = dict[str, Any]

WORDS = ("metsä", "lumi", "järvi", "kettu", "talvi", "kirja", "silta", "kahvi", "sauna", "juna", "ranta", "tuuli")


def write_all(raw: Path, *, documents: int = 40) -> None:
    """Every corpus, with so many documents in each of its files."""
    write_slimpajama(raw, documents)
    write_finnish(raw, documents)
    write_tatoeba(raw, documents)
    write_starcoder(raw, documents)
    write_gutenberg(raw, documents)


def sentence(number: int, kind: str = "text") -> str:
    """A sentence that no other number and kind has."""
    words = [WORDS[(number * step + len(kind)) % len(WORDS)] for step in range(1, 9)]
    return f"{kind} {number}: {' '.join(words)} päättyy."


def write_slimpajama(raw: Path, documents: int) -> None:
    names = ("RedPajamaCommonCrawl", "RedPajamaBook", "RedPajamaC4", "RedPajamaGithub")
    for place in (
        "train/chunk1/example_train_0",
        "train/chunk2/example_train_1",
        "validation/chunk1/example_holdout_0",
    ):
        records = [
            {"text": sentence(n, place), "meta": {"redpajama_set_name": names[n % len(names)]}}
            for n in range(documents)
        ]
        put(raw / f"slimpajama/{place}.jsonl.zst", zstandard.ZstdCompressor().compress(lines(records)))


def write_starcoder(raw: Path, documents: int) -> None:
    for place in ("python/train-00000-of-00002", "java/train-00000-of-00001", "validation/python"):
        records = [
            {
                "max_stars_repo_path": f"src/{n}.py",
                "max_stars_repo_name": "someone/something",
                "max_stars_count": n,
                "id": str(n),
                "content": f"<reponame>someone/something\n<gh_stars>1-10\nprint({sentence(n, place)!r})\n",
            }
            for n in range(documents)
        ]
        put_parquet(raw / f"starcoder/{place}.parquet", records)


def write_gutenberg(raw: Path, documents: int) -> None:
    for place in ("books-0000", "books-0001", "validation/books-0002"):
        records = [
            {"id": str(n), "text": sentence(n, place), "source": "gutenberg", "added": "2023-04-11", "created": "1900"}
            for n in range(documents)
        ]
        put(raw / f"gutenberg/{place}.json.gz", gzip.compress(lines(records)))


def write_tatoeba(raw: Path, documents: int) -> None:
    folder = raw / "tatoeba/data/release/v2021-08-07/eng-fin"
    sides = {"src": "English sentence", "trg": "Suomen virke"}
    for side, words in sides.items():
        text = "".join(f"{words} {n}.\n" for n in range(documents)).encode()
        put(folder / f"train.{side}.gz", gzip.compress(text))
        put(folder / f"dev.{side}", text.replace(b"1", b"9"))
    put(folder / "train.id.gz", gzip.compress(b"CCAligned\teng\tfin\n" * documents))


def write_finnish(raw: Path, documents: int) -> None:
    finnish = raw / "finnish"
    numbers = range(documents)
    put(finnish / "parsebank/pb_00.conllu.gz", gzip.compress(conllu([sentence(n, "parsebank") for n in numbers])))
    mc4 = [{"text": sentence(n, "mc4"), "timestamp": "2020-01-01T00:00:00Z", "url": "https://x.fi"} for n in numbers]
    put(finnish / "mc4-fi/c4-fi.tfrecord-00000-of-01024.json.gz", gzip.compress(lines(mc4)))
    held_out = [{**record, "text": f"validation {record['text']}"} for record in mc4]
    put(finnish / "mc4-fi/c4-fi-validation.tfrecord-00000-of-00002.json.gz", gzip.compress(lines(held_out)))
    put(finnish / "cc-fi/part-0.jsonl", lines([{"id": str(n), "text": sentence(n, "cc"), "meta": {}} for n in numbers]))
    put(finnish / "wikipedia/AA/wiki_00", wikipedia([sentence(n, "wiki") for n in numbers]))
    put(finnish / "lonnrot/kalevala.txt", BOOK.encode("latin-1"))
    put(finnish / "suomi24/s24_2001.vrt", VRT.encode())
    put(finnish / "reddit/RS_2019-01.zst", zstandard.ZstdCompressor().compress(lines(SUBMISSIONS)))
    put(finnish / "reddit/RC_2019-01.zst", zstandard.ZstdCompressor().compress(lines(COMMENTS)))
    put(finnish / "stt/2001/article.xml", NEWSML.encode())
    put(finnish / "yle/fi/2011/0001.json", json.dumps({"data": YLE_ARTICLES}).encode())
    for corpus in ("parsebank", "cc-fi", "wikipedia", "lonnrot", "suomi24", "reddit", "stt", "yle"):
        put(finnish / corpus / "validation/held_out.jsonl", lines([{"text": sentence(0, f"held out {corpus}")}]))


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_parquet(path: Path, records: Sequence[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=16)
    return path


def lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def conllu(texts: Sequence[str]) -> bytes:
    """A document a text, whose sentences are in two paragraphs."""
    return "".join(
        f'# <doc id="{n}" url="https://x.fi/{n}" langdiff="0.4">\n# delex_lm_mean_perplexity: 5.1\n'
        f"# predicted register: NA\n# <p heading=0>\n# sent_id = 1\n# text = {text}\n"
        "1\tsana\tsana\tNOUN\t_\t_\t0\troot\t_\t_\n\n"
        "# text = Toinen virke.\n1\tToinen\ttoinen\tADJ\t_\t_\t0\troot\t_\t_\n\n"
        "# </p>\n# <p>\n# text = Uusi kappale.\n1\tUusi\tuusi\tADJ\t_\t_\t0\troot\t_\t_\n\n# </p>\n# </doc>\n"
        for n, text in enumerate(texts)
    ).encode()


def wikipedia(texts: Sequence[str]) -> bytes:
    return "".join(
        f'<doc id="{n}" url="https://fi.wikipedia.org/wiki?curid={n}" title="Artikkeli {n}">\n'
        f"Artikkeli {n}\n\n{text}\n\n</doc>\n"
        for n, text in enumerate(texts)
    ).encode()


BOOK = (
    "Tämä teos on tekijänoikeuksista vapaa.\r\n\r\n"
    "Tämän e-kirjan on tuottanut Projekti Lönnrot.\r\n\r\n"
    "Mieleni minun tekevi, aivoni ajattelevi lähteäni laulamahan saa'ani\r\n"
    "sanelemahan, sukuvirttä suoltamahan, lajivirttä laulamahan sanat suussani\r\n"
    "sulavat, puhe'et putoelevat.\r\n\r\n"
    "   _Veli kulta_,\r\n   veikkoseni,\r\n   kaunis kasvinkumppalini!\r\n"
)

VRT = """<!-- #vrt positional-attributes: id word lemma spaces -->
<text comment_id="0" title="Otsikko" type="thread">
<paragraph type="title">
<sentence id="1">
1\tHei\thei\tSpaceAfter=No
2\t!\t!\tSpacesAfter=\\n\\n
</sentence>
</paragraph>
<paragraph type="body">
<sentence id="2">
1\tMitä\tmikä\t_
2\tkuuluu\tkuulua\tSpaceAfter=No
3\t?\t?\tSpacesAfter=\\n
</sentence>
</paragraph>
</text>
<text comment_id="7" title="Otsikko" type="comment">
<paragraph type="body">
<sentence id="1">
1\ta&lt;b\ta\t_
2\t&amp;lt;\tb\tSpacesAfter=\\s\\n
</sentence>
</paragraph>
</text>
"""

SUBMISSIONS = [
    {"id": "a", "subreddit": "Suomi", "title": "Mikä   on paras sauna?", "selftext": "Kertokaa **pian**."},
    {"id": "b", "subreddit": "Suomi", "title": "Linkki", "selftext": ""},
    {"id": "c", "subreddit": "sweden", "title": "Hej", "selftext": "Hej hej"},
    {"id": "d", "subreddit": "Suomi", "title": "Poissa", "selftext": "[removed]"},
]
COMMENTS = [
    {"id": "e", "subreddit": "Suomi", "body": "&gt; Kertokaa\n\nSe on [savusauna](https://x.fi).", "link_id": "t3_a"},
    {"id": "f", "subreddit": "Suomi", "body": "[deleted]", "link_id": "t3_a"},
    {"id": "g", "subreddit": "Suomi", "body": " ", "link_id": "t3_a"},
]

NEWSML = """<?xml version="1.0" encoding="UTF-8"?>
<newsItem xmlns="http://iptc.org/std/nar/2006-10-01/" guid="urn:newsml:stt.fi:20010101:1">
<contentMeta><headline>Otsikko</headline></contentMeta>
<contentSet><inlineXML><html xmlns="http://www.w3.org/1999/xhtml"><body><h1>Silta
 avattiin</h1><p>Helsinki, <b>STT</b>. Silta on auki.</p><p> </p><p>Se on pitkä.</p></body></html></inlineXML>
</contentSet>
</newsItem>
"""

YLE_ARTICLES = [
    {
        "id": "3-1",
        "url": {"full": "https://yle.fi/3-1"},
        "language": "fi",
        "content": [
            {"type": "heading", "level": 1, "text": "Silta *avattiin*"},
            {"type": "image", "id": "1"},
            {"type": "text", "text": "Lue [lisää](https://yle.fi/2)."},
            {"type": "quote", "text": "Ei tämä"},
            {"type": "bullet-list", "items": ["yksi", "kaksi"]},
            {"type": "numbered-list", "items": ["eka", "toka"]},
            {"type": "aside", "content": [{"type": "text", "text": "Sivussa"}]},
            {"type": "top-list", "items": [{"content": [{"type": "text", "text": "Listalla"}]}]},
            {"type": "feature", "pages": [{"content": [{"type": "text", "text": "Sivulla"}]}]},
        ],
    },
    {"id": "3-2", "url": {"full": "https://yle.fi/3-2"}, "language": "fi", "content": [{"type": "video"}]},
]
