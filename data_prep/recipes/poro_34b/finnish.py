"""The Finnish of Poro: nine corpora, one dataset. It is read four times because its share of the mixture is that large.

They are FinGPT's corpora without the two of the National Library. Each adapter turns a corpus as it is distributed into
documents, and takes JSON lines with the text under ``text`` in its place: the filters of FinGPT (heuristics, removal of
duplicates, perplexity, toxicity, masking of personal data) are programs of their own that write such files. A user who
runs them puts their output where the corpus would lie. Which weights the corpora had inside the dataset is not
published; here every document comes once.

Sources: Luukkonen et al. 2023, arXiv:2311.05640 (FinGPT); the converters of TurkuNLP/finngen-tools, for the formats.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_poro.data.documents import Dropped
from megatron_poro.data.recipe import Recipe, one_document, plain_text, text_under

from ._language_bank import newsml_article, vrt_texts, yle_articles, yle_text
from ._prose import markdown_text, unwrapped
from ._web import conllu_documents, wiki_documents

SOURCE = "finnish"
SUBREDDIT = "suomi"

_BODIES = ("body", "selftext")  # of comments and of submissions
_REMOVED = {"[deleted]", "[removed]"}
_NO_SPLIT = " The corpus has no validation part: what lies in a folder validation is inferred to be held out."

_LICENCE_NOTE = ("public domain", "tekijänoikeuksista vapaa")
_PRODUCED_BY = ("on tuottanut", "ovat tuottaneet", "Denna e-bok har producerats av")


def reddit_post(record: Mapping[str, Any]) -> Iterable[str | Dropped]:
    """A comment, or title and text of a submission, of r/Suomi."""
    if "text" in record and not any(key in record for key in _BODIES):
        return plain_text(record)
    if text_under(record, "subreddit").lower() != SUBREDDIT:
        return [Dropped("another subreddit")]
    body = text_under(record, next((key for key in _BODIES if key in record), _BODIES[0]))
    if body in _REMOVED:
        return [Dropped("deleted")]
    title = " ".join(str(record.get("title") or "").split())
    return one_document("\n\n".join(text for text in (markdown_text(title), markdown_text(body)) if text))


def yle_article(record: Mapping[str, Any]) -> Iterable[str | Dropped]:
    """An article of Yle."""
    return one_document(yle_text(record)) if "content" in record else plain_text(record)


def book(record: Mapping[str, Any]) -> Iterable[str | Dropped]:
    """A book of Lönnrot without its notices and its marks of emphasis, or one that was converted before."""
    if "book" not in record:
        return plain_text(record)
    paragraphs = unwrapped(text_under(record, "book")).split("\n\n")
    for notices in (_LICENCE_NOTE, _PRODUCED_BY):
        if paragraphs and any(notice in " ".join(paragraphs[0].split()) for notice in notices):
            del paragraphs[0]
    return one_document("\n\n".join(paragraphs).replace("_", ""))


def book_file(path: Path) -> Iterator[Mapping[str, Any]]:
    """The one record of a text file: ``book``. The archive's files are UTF-8 or Latin-1 and do not say which."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    yield {"book": text.replace("\r\n", "\n")}


def recipes() -> Sequence[Recipe]:
    """The nine corpora, in the order in which the dataset holds them."""
    return [
        Recipe(
            name="finnish/parsebank",
            source=SOURCE,
            origin="https://turkunlp.org/finnish_nlp.html#parsebank",
            licence="web pages of many owners; access from TurkuNLP",
            form="Known from its converter: CoNLL-U, plain or .gz, with comments '# <doc ...>', '# <p>' and "
            "'# text = '." + _NO_SPLIT,
            train=_patterns("parsebank", "*.conllu", "*.conllu.gz"),
            validation=_held_out("parsebank", "*.conllu", "*.conllu.gz"),
            extract=plain_text,
            formats={".conllu": conllu_documents, ".conllu.gz": conllu_documents},
        ),
        Recipe(
            name="finnish/mc4-fi",
            source=SOURCE,
            origin="https://huggingface.co/datasets/allenai/c4 (multilingual, fi)",
            licence="ODC-BY; Common Crawl terms of use",
            form="Known from the repository: c4-fi.tfrecord-*.json.gz and c4-fi-validation.tfrecord-*.json.gz, JSON "
            "lines with keys text, timestamp, url.",
            train=_patterns("mc4-fi", "c4-fi.*.json.gz"),
            validation=(*_held_out("mc4-fi"), "finnish/mc4-fi/**/c4-fi-validation.*.json.gz"),
            extract=plain_text,
        ),
        Recipe(
            name="finnish/cc-fi",
            source=SOURCE,
            origin="Finnish pages of Common Crawl, chosen by the authors of FinGPT (arXiv 2311.05640)",
            licence="Common Crawl terms of use",
            form="Known from its converter: the text of a page is extracted from WARC into JSON lines with keys id, "
            "text, meta; those are read here. The list of pages is not published." + _NO_SPLIT,
            train=_patterns("cc-fi"),
            validation=_held_out("cc-fi"),
            extract=plain_text,
        ),
        Recipe(
            name="finnish/wikipedia",
            source=SOURCE,
            origin="https://dumps.wikimedia.org/fiwiki through https://github.com/attardi/wikiextractor",
            licence="CC BY-SA 4.0",
            form="Known from its converter: folders of files wiki_00, wiki_01, ... with <doc id url title> elements."
            + _NO_SPLIT,
            train=_patterns("wikipedia", "wiki_[0-9]*"),
            validation=_held_out("wikipedia", "wiki_[0-9]*"),
            extract=plain_text,
            formats={f"wiki_{number:02}": wiki_documents for number in range(100)},
        ),
        Recipe(
            name="finnish/lonnrot",
            source=SOURCE,
            origin="http://www.lonnrot.net",
            licence="public domain",
            form="Known from its converter: a text file a book, in UTF-8 or Latin-1, lines of some 70 characters, "
            "first a notice of licence and one of who made it, _underscores_ for italics. "
            "The encoding is told by trial, not by a detector." + _NO_SPLIT,
            train=_patterns("lonnrot", "*.txt"),
            validation=_held_out("lonnrot", "*.txt"),
            extract=book,
            formats={".txt": book_file},
        ),
        Recipe(
            name="finnish/suomi24",
            source=SOURCE,
            origin="http://urn.fi/urn:nbn:fi:lb-2021101527",
            licence="CLARIN ACA +NC 1.0: academic use",
            form="Known from its README and converter: VRT with <text>, <paragraph>, <sentence> and a token a line; "
            "the column 'spaces' holds the white space. Quoted messages are not repeated." + _NO_SPLIT,
            train=_patterns("suomi24", "*.vrt", "*.vrt.gz"),
            validation=_held_out("suomi24", "*.vrt", "*.vrt.gz"),
            extract=plain_text,
            formats={".vrt": vrt_texts, ".vrt.gz": vrt_texts},
        ),
        Recipe(
            name="finnish/reddit",
            source=SOURCE,
            origin="https://www.reddit.com/r/Suomi, from the archives of Pushshift",
            licence="content of Reddit's users; Reddit's terms",
            form="Known from its converter and the archives: JSON lines in RS_*.zst (title, selftext) and RC_*.zst "
            "(body) with subreddit. Marks of markdown are taken off without a parser; posts that stand in the archive "
            "twice are not looked for." + _NO_SPLIT,
            train=_patterns("reddit", "R[SC]_*.zst"),
            validation=_held_out("reddit", "R[SC]_*.zst"),
            extract=reddit_post,
        ),
        Recipe(
            name="finnish/stt",
            source=SOURCE,
            origin="http://urn.fi/urn:nbn:fi:lb-2019041501",
            licence="CLARIN ACA: academic use",
            form="Known from its converter: NewsML, an article a file, text in contentSet/inlineXML/html/body."
            + _NO_SPLIT,
            train=_patterns("stt", "*.xml"),
            validation=_held_out("stt", "*.xml"),
            extract=plain_text,
            formats={".xml": newsml_article},
        ),
        Recipe(
            name="finnish/yle",
            source=SOURCE,
            origin="http://urn.fi/urn:nbn:fi:lb-2017070501 and its sequel; the easy-to-read news of the same years",
            licence="CLARIN ACA +NC: academic use",
            form="Known from its converter: .json files with articles under data, each a list 'content' of typed "
            "elements. News and easy-to-read news (selkouutiset) have one form." + _NO_SPLIT,
            train=_patterns("yle", "*.json"),
            validation=_held_out("yle", "*.json"),
            extract=yle_article,
            formats={".json": yle_articles},
        ),
    ]


def _patterns(corpus: str, *names: str) -> tuple[str, ...]:
    """A corpus as it is distributed, or as JSON lines."""
    return tuple(f"{SOURCE}/{corpus}/**/{name}" for name in (*names, "*.jsonl", "*.jsonl.gz", "*.jsonl.zst"))


def _held_out(corpus: str, *names: str) -> tuple[str, ...]:
    return _patterns(f"{corpus}/validation", *names)
