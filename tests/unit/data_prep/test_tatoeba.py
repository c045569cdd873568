"""The documents of a sentence pair."""

from data_prep.recipes.poro_34b.tatoeba import translation_documents


def test_each_direction_is_asked_for_in_the_language_of_its_source() -> None:
    documents = translation_documents("Good night!", "Hyvää yötä!")
    assert documents.english_to_finnish == "<|user|>Translate into Finnish: Good night! <|assistant|>Hyvää yötä!"
    assert documents.finnish_to_english == "<|user|>Käännä englanniksi: Hyvää yötä! <|assistant|>Good night!"


def test_the_separator_stands_before_the_assistant_in_both_directions() -> None:
    documents = translation_documents("Yes.", "Kyllä.", separator="\n")
    assert documents.english_to_finnish == "<|user|>Translate into Finnish: Yes.\n<|assistant|>Kyllä."
    assert documents.finnish_to_english == "<|user|>Käännä englanniksi: Kyllä.\n<|assistant|>Yes."
