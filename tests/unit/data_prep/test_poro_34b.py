"""The recipes of Poro 34B, each on a small file of the form in which its corpus is distributed."""

import gzip
from pathlib import Path

import pytest

from data_prep.recipes.poro_34b._prose import markdown_text
from megatron_poro.config.load import load_config
from megatron_poro.data.documents import Dropped, Malformed, read_documents
from megatron_poro.data.recipe import RecipeFolder, Split
from megatron_poro.data.recipe_reader import RecipeReader
from megatron_poro.errors import ConfigError, DataError
from tests.unit.data_prep import raw_corpora

FOLDER = Path(__file__).parents[3] / "data_prep" / "recipes" / "poro_34b"
FINNISH = ["parsebank", "mc4-fi", "cc-fi", "wikipedia", "lonnrot", "suomi24", "reddit", "stt", "yle"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    raw_corpora.write_all(folder, documents=4)
    return folder


def read(
    raw: Path, name: str, split: Split = Split.TRAIN, folder: RecipeFolder | None = None
) -> list[str | Dropped | Malformed]:
    """Everything that a recipe makes of its files."""
    folder = folder or RecipeFolder(FOLDER)
    files = folder.recipe(name).files(raw, split)
    return [document for path in files for document in read_documents(path, RecipeReader(folder, name))]


def test_there_is_a_recipe_for_each_source_of_the_mixture_and_no_other() -> None:
    data = load_config(["experiment=poro_34b"]).data
    sources = {recipe.source for recipe in RecipeFolder(FOLDER).recipes}
    assert sources == {source.name for source in data.train} == {source.name for source in data.validation}


def test_the_nine_finnish_corpora_are_one_source_and_only_prose_and_code_make_the_vocabulary() -> None:
    folder = RecipeFolder(FOLDER)
    assert [recipe.name for recipe in folder.of_source("finnish")] == [f"finnish/{name}" for name in FINNISH]
    learnt = {recipe.source for recipe in folder.recipes if recipe.in_vocabulary}
    assert learnt == {"slimpajama", "finnish", "starcoder"}


@pytest.mark.parametrize("name", [recipe.name for recipe in RecipeFolder(FOLDER).recipes])
def test_every_recipe_finds_files_for_both_parts_and_none_twice(raw: Path, name: str) -> None:
    recipe = RecipeFolder(FOLDER).recipe(name)
    train, validation = (recipe.files(raw, split) for split in Split)
    assert train
    assert validation
    assert set(train).isdisjoint(validation)
    assert recipe.origin
    assert recipe.licence
    assert recipe.form
    assert any(isinstance(document, str) for document in read(raw, name, Split.VALIDATION))


def test_slimpajama_loses_its_books_and_says_so(raw: Path) -> None:
    documents = read(raw, "slimpajama")
    assert documents.count(Dropped("book")) == 2  # one in each file of four
    assert documents[:2] == [raw_corpora.sentence(0, "train/chunk1/example_train_0"), Dropped("book")]
    assert len(documents) == 8


def test_a_record_of_slimpajama_without_its_set_name_is_malformed(tmp_path: Path) -> None:
    raw_corpora.put(tmp_path / "slimpajama/train/a.jsonl.zst", raw_corpora.zstandard.compress(b'{"text": "a"}\n'))
    (document,) = read(tmp_path, "slimpajama")
    assert isinstance(document, Malformed)
    assert "a.jsonl.zst line 1 has no key 'meta'" in document.problem


def test_starcoder_keeps_its_tags(raw: Path) -> None:
    first, *others = read(raw, "starcoder")
    expected = raw_corpora.sentence(0, "java/train-00000-of-00001")
    assert first == f"<reponame>someone/something\n<gh_stars>1-10\nprint({expected!r})\n"
    assert len(others) == 7


def test_gutenberg_is_dolmas_books(raw: Path) -> None:
    kinds = ["books-0000"] * 4 + ["books-0001"] * 4
    assert read(raw, "gutenberg") == [raw_corpora.sentence(n % 4, kind) for n, kind in enumerate(kinds)]


def test_tatoeba_is_two_documents_a_pair_one_for_each_direction(raw: Path) -> None:
    english = "<|user|>Translate into Finnish: English sentence 0. <|assistant|>Suomen virke 0."
    finnish = "<|user|>Käännä englanniksi: Suomen virke 0. <|assistant|>English sentence 0."
    assert read(raw, "tatoeba_en_fi")[0] == english
    assert read(raw, "tatoeba_fi_en")[0] == finnish
    assert len(read(raw, "tatoeba_en_fi")) == len(read(raw, "tatoeba_fi_en")) == 4


def test_separator_and_wording_of_tatoeba_are_options(raw: Path) -> None:
    options = {"tatoeba": {"separator": "newline", "into_finnish": "Käännä suomeksi:"}}
    folder = RecipeFolder(FOLDER, options)
    assert (
        read(raw, "tatoeba_en_fi", folder=folder)[0]
        == "<|user|>Käännä suomeksi: English sentence 0.\n<|assistant|>Suomen virke 0."
    )
    with pytest.raises(ConfigError, match=r"tatoeba.separator=tab is not one of space, newline"):
        _ = RecipeFolder(FOLDER, {"tatoeba": {"separator": "tab"}}).recipes


@pytest.mark.parametrize(
    ("english", "finnish", "complaint"),
    [
        (b"One.\nTwo.\n", b"Yksi.\n", "train.trg.gz ends after line 1, .*train.src.gz goes on"),
        (b"One.\n", b"Yksi.\nKaksi.\n", "train.src.gz ends after line 1, .*train.trg.gz goes on"),
        (b"One.\n", None, "train.trg.gz with the other does not exist"),
    ],
)
def test_sides_that_do_not_match_are_refused(
    tmp_path: Path, english: bytes, finnish: bytes | None, complaint: str
) -> None:
    raw_corpora.put(tmp_path / "tatoeba/train.src.gz", gzip.compress(english))
    if finnish is not None:
        raw_corpora.put(tmp_path / "tatoeba/train.trg.gz", gzip.compress(finnish))
    with pytest.raises(DataError, match=complaint):
        read(tmp_path, "tatoeba_en_fi")


def test_a_pair_with_an_empty_side_is_dropped(tmp_path: Path) -> None:
    raw_corpora.put(tmp_path / "tatoeba/train.src", b"One.\n\nThree.\n")
    raw_corpora.put(tmp_path / "tatoeba/train.trg", b"Yksi.\nKaksi.\nKolme.\n")
    documents = read(tmp_path, "tatoeba_fi_en")
    assert documents[1] == Dropped("one side of the pair is empty")
    assert documents[2] == "<|user|>Käännä englanniksi: Kolme. <|assistant|>Three."


def test_parsebank_is_sentences_in_paragraphs(raw: Path) -> None:
    documents = read(raw, "finnish/parsebank")
    assert documents[3] == f"{raw_corpora.sentence(3, 'parsebank')} Toinen virke.\n\nUusi kappale."
    assert len(documents) == 4


def test_mc4_and_common_crawl_are_their_texts(raw: Path) -> None:
    assert read(raw, "finnish/mc4-fi") == [raw_corpora.sentence(n, "mc4") for n in range(4)]
    assert read(raw, "finnish/cc-fi") == [raw_corpora.sentence(n, "cc") for n in range(4)]


def test_wikipedia_keeps_title_and_empty_lines(raw: Path) -> None:
    documents = read(raw, "finnish/wikipedia")
    assert documents[1] == f"Artikkeli 1\n\n{raw_corpora.sentence(1, 'wiki')}\n"
    assert len(documents) == 4


def test_a_book_loses_notices_wrapping_and_underscores_but_keeps_its_verse(raw: Path) -> None:
    (document,) = read(raw, "finnish/lonnrot")
    assert isinstance(document, str)
    prose, verse = document.split("\n\n")
    assert prose.startswith("Mieleni minun tekevi")
    assert "saa'ani sanelemahan" in prose
    assert "\n" not in prose
    assert verse.rstrip() == "Veli kulta,\nveikkoseni,\nkaunis kasvinkumppalini!"


def test_a_message_of_suomi24_gets_its_white_space_back(raw: Path) -> None:
    assert read(raw, "finnish/suomi24") == ["Hei!\n\nMitä kuuluu?", "a<b &lt;"]


def test_vrt_without_a_header_has_the_columns_of_the_older_release(tmp_path: Path) -> None:
    columns = "Moi 1 moi moi N _ 0 root SpaceAfter=No 1 _".replace(" ", "\t")
    last = columns.replace("Moi", ".")
    raw_corpora.put(tmp_path / "finnish/suomi24/a.vrt", f"<text a='1'>\n{columns}\n{last}\n</text>\n".encode())
    assert read(tmp_path, "finnish/suomi24") == ["Moi."]


def test_reddit_is_r_suomi_without_marks_and_without_what_was_deleted(raw: Path) -> None:
    assert read(raw, "finnish/reddit") == [
        "Kertokaa\n\nSe on savusauna.",
        Dropped("deleted"),
        Dropped("empty text"),
        "Mikä on paras sauna?\n\nKertokaa pian.",
        "Linkki",
        Dropped("another subreddit"),
        Dropped("deleted"),
    ]


def test_archives_of_reddit_may_have_the_window_that_pushshift_gives_them(tmp_path: Path) -> None:
    wide = raw_corpora.zstandard.ZstdCompressionParameters.from_level(3, window_log=28, write_content_size=False)
    compressor = raw_corpora.zstandard.ZstdCompressor(compression_params=wide).compressobj()
    content = compressor.compress(raw_corpora.lines(raw_corpora.COMMENTS)) + compressor.flush()
    raw_corpora.put(tmp_path / "finnish/reddit/RC_2020-01.zst", content)
    assert read(tmp_path, "finnish/reddit")[0] == "Kertokaa\n\nSe on savusauna."


def test_stt_is_headings_and_paragraphs(raw: Path) -> None:
    assert read(raw, "finnish/stt") == ["Silta avattiin\n\nHelsinki, STT. Silta on auki.\n\nSe on pitkä."]


def test_yle_is_its_running_text(raw: Path) -> None:
    assert read(raw, "finnish/yle") == [
        "Silta avattiin\n\nLue lisää.\n\n• yksi\n• kaksi\n\n1. eka\n2. toka\n\nSivussa\n\nListalla\n\nSivulla",
        Dropped("empty text"),
    ]


@pytest.mark.parametrize("name", FINNISH)
def test_filtered_json_lines_take_the_place_of_a_finnish_corpus(tmp_path: Path, name: str) -> None:
    raw_corpora.put(tmp_path / f"finnish/{name}/clean.jsonl.gz", gzip.compress(raw_corpora.lines([{"text": "Sana."}])))
    assert read(tmp_path, f"finnish/{name}") == ["Sana."]


@pytest.mark.parametrize(
    ("name", "file", "content", "complaint"),
    [
        ("parsebank", "a.conllu", "# text = Sana.\n", "line 1 is a sentence before the first # <doc"),
        ("wikipedia", "wiki_03", "Sana.\n", r"line 1 is outside any <doc>: 'Sana.'"),
        ("wikipedia", "wiki_03", '<doc id="1" url="u" title="T">\nSana.\n', "ends inside the document 'T'"),
        ("suomi24", "a.vrt", "<text a='1'>\nMoi\t1\n", "line 2 has 2 columns; white space is in column 9"),
        ("suomi24", "a.vrt", "<text a='1'>\n", "ends inside a message"),
        ("stt", "a.xml", "<newsItem>", "a.xml is not XML"),
        ("stt", "a.xml", "<newsItem></newsItem>", "a.xml has 0 bodies"),
        ("yle", "a.json", '{"articles": []}', "a.json is not a JSON object with articles under data"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, file: str, content: str, complaint: str) -> None:
    raw_corpora.put(tmp_path / f"finnish/{name}/{file}", content.encode())
    with pytest.raises(DataError, match=complaint):
        read(tmp_path, f"finnish/{name}")


MARKDOWN: dict[str, str] = {
    "# Otsikko\n\nteksti": "Otsikko\n\nteksti",
    "**a** ja *b* ja ~~c~~ ja `d`": "a ja b ja c ja d",
    "snake_case_name ja _korostus_": "snake_case_name ja korostus",
    "2 * 3 * 4": "2 * 3 * 4",
    '![kuva](k.png)[linkki](https://x.fi "n")': "linkki",
    "&gt;!juonipaljastus!&lt;": "juonipaljastus",
    "a\n \n\n\n  b  \n c": "a\n\nb\nc",
}


@pytest.mark.parametrize("marked", MARKDOWN)
def test_markdown_becomes_what_a_reader_sees(marked: str) -> None:
    assert markdown_text(marked) == MARKDOWN[marked]
