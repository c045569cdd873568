"""What is taken from a standard library, shown on a small made-up one."""

from pathlib import Path

import pytest

from data_prep.recipes.sample import standard_library
from megatron_poro.errors import DataError

MODULE = '''"""Module number {number}: it tells about the number {number} at some length, as a module should,
    and it goes on to a second line, since what is very short, and says next to nothing, is not taken for an article."""

class Counter:
    """Counts up to the number {number}, and then tells that it has arrived there, in so many words."""

    def count(self) -> int:
        """Counts one further; what it returns is at most {number}, however often it is called by anyone."""

    def _secret(self) -> None:
        """This docstring is private: it is nobody's business but that of module number {number} itself."""

def short() -> None:
    """Too short."""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with twenty modules, four of them in a package, in the place of the real library."""
    for number in range(20):
        folder = tmp_path / "package" if number % 5 == 0 else tmp_path
        folder.mkdir(exist_ok=True)
        (folder / f"module_{number}.py").write_text(MODULE.format(number=number), encoding="utf-8")
    monkeypatch.setattr(standard_library, "_library", lambda: tmp_path)
    monkeypatch.setattr(standard_library, "CODE_CHARACTERS", 8 * len(MODULE))
    return tmp_path


def test_every_module_is_either_code_or_prose(library: Path) -> None:
    code = {document.group for document in standard_library.code_files()}
    prose = {document.group for document in standard_library.articles() if document.group.endswith(".py")}
    assert code
    assert prose
    assert code.isdisjoint(prose)
    assert code | prose == {path.relative_to(library).as_posix() for path in library.rglob("*.py")}


@pytest.mark.parametrize(
    "name", ["site-packages/other.py", "json/tests/test_other.py", "_sysconfigdata_here.py", "sitecustomize.py"]
)
def test_what_is_not_the_library_is_left_out(library: Path, name: str) -> None:
    before = standard_library.articles() + standard_library.code_files()
    standard_library._modules.cache_clear()
    (library / name).parent.mkdir(parents=True, exist_ok=True)
    (library / name).write_text(MODULE.format(number="of someone else"), encoding="utf-8")
    assert standard_library.articles() + standard_library.code_files() == before


def test_an_article_is_the_public_docstrings_under_their_names(library: Path) -> None:
    article = next(document for document in standard_library.articles() if document.group.endswith(".py"))
    name = article.group.removesuffix(".py").replace("/", ".")
    paragraphs = article.text.split("\n\n")
    assert paragraphs[::2] == [name, f"{name}.Counter", f"{name}.Counter.count"]
    assert paragraphs[1].startswith("Module number")
    assert "private" not in article.text
    assert "Too short" not in article.text


def test_code_is_the_whole_source_behind_its_tag(library: Path) -> None:
    for document in standard_library.code_files():
        source = (library / document.group).read_text(encoding="utf-8")
        assert document.text == f"<filename>{document.group}\n{source}"


def test_a_long_file_becomes_several_documents_of_one_group(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = standard_library.code_files()[0]
    path = library / whole.group
    content = path.read_text(encoding="utf-8").strip()
    path.write_text("\n\n\n".join([content] * 3), encoding="utf-8")
    monkeypatch.setattr(standard_library, "DOCUMENT_CHARACTERS", len(content) + 10)
    standard_library._modules.cache_clear()
    pieces = [document for document in standard_library.code_files() if document.group == whole.group]
    assert [piece.text for piece in pieces] == [whole.text.strip()] * 3


def test_chapters_are_books_or_articles_by_their_length() -> None:
    books = {document.group: document.text for document in standard_library.books()}
    assert "topics/specialnames" in books
    assert all(len(text) >= standard_library.SHORTEST_BOOK for text in books.values())
    assert len(set(books.values())) == len(books)


def test_the_licence_is_a_book_where_it_is_installed(library: Path) -> None:
    assert "LICENSE.txt" not in {document.group for document in standard_library.books()}
    (library / "LICENSE.txt").write_text("You may.\n", encoding="utf-8")
    assert standard_library.books()[-1] == ("You may.", "LICENSE.txt")


def test_a_python_without_sources_is_refused(library: Path) -> None:
    for path in library.rglob("*.py"):
        path.unlink()
    with pytest.raises(DataError, match="0 modules as source"):
        standard_library.code_files()
