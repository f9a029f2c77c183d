"""Filters on single answers: refusals, lengths, formats, languages."""

from typing import Any

import pytest

from distillery.core.errors import UserError
from distillery.runs.generate.clean.answers import refuses, wrong_format, wrong_length
from distillery.runs.generate.clean.language import LanguageFilter
from distillery.runs.generate.clean.settings import Format, Language, Length, Refusal
from fixtures.cleaning import filters

REFUSALS = """I'm sorry, but I can't assist with that.
I’m sorry, but I cannot help with that request.
Sorry, I can't do that.
I am very sorry, but I am not able to provide instructions for this.
I apologize, but I cannot fulfill your request.
I apologise for the inconvenience, but I can't generate that content.
Unfortunately, I can't browse the internet.
Unfortunately, I am unable to access the file you mention.
I cannot provide medical advice.
I can't write a story that glorifies violence.
I won't help you break into someone's account.
I will not discuss this topic.
I'm not able to share personal information about private individuals.
I'm unable to create images.
I'm not comfortable writing this.
We cannot comply with this request.
I must respectfully decline this request.
I'm afraid I have to decline.
As an AI language model, I do not have feelings.
As an AI, I can't form opinions.
As a large language model, I was trained on text.
Well, I'm just an AI and have never eaten pizza.
I'm an AI assistant, so I can't taste food.
Writing this would go against my guidelines.
That request violates OpenAI's usage policies.
I don't have access to real-time data.
As of my last update, I do not have access to current prices.
I don't have personal opinions, but many people like it.
As a responsible assistant, I cannot provide that.
Hello! I'm sorry, but I can't assist with that.""".split("\n")
ANSWERS = """I'm sorry to hear that you are ill. Rest and drink water.
I can't recommend this book enough: its characters are alive.
I cannot help but admire the view.
I can't help laughing when I read it.
As an AI researcher, you will need linear algebra.
An AI is a program that solves tasks.
The guard said, "I cannot let you pass."
"I'm sorry," she whispered, "I can't do that."
Unfortunately, the bridge was closed for repairs.
Unfortunately, we cannot know what Shakespeare thought.
You should apologise and say: I am sorry, but I cannot come.
Dear Ms Smith, I regret that I cannot attend the meeting.
I will not go gentle into that good night.
I don't have a car, so I walk.
Sorry is a board game for two to four players.
No, whales are mammals.
The policy violates the constitution.
It is against my will that I go, he wrote.
A language model assigns probabilities to texts.
As a language teacher, I would start with greetings.
I am unable is a phrase in English.
We can't divide by zero, so the limit is taken instead.
I have to go to the market to buy bread.
The company must decline the offer.
I can give you three examples: a, b and c.
Access to the building requires a key.
To refuse politely, say: "I must decline, thank you."
I'm afraid of spiders because of their legs.
If I can't sleep, I read a book.
As an assistant at a law firm, you file papers.""".split("\n")


def test_refusals_are_told_from_answers() -> None:
    """The guide states these counts: 29 of 30 refusals, none of 30 answers. The greeting hides the last one."""
    settings = filters().refusal
    found = [text for text in REFUSALS if refuses(text, settings)]
    assert found == REFUSALS[:29]
    assert [text for text in ANSWERS if refuses(text, settings)] == []
    assert refuses("x" * 250 + " As an AI, I", settings) is None


def test_patterns_are_the_users() -> None:
    assert refuses("Je suis désolé, mais", Refusal(10, {"french": "désolé"})) is None
    found = refuses("Je suis désolé, mais", Refusal(20, {"french": "DÉSOLÉ"}))
    assert found == {"pattern": "french", "found": "désolé"}
    assert refuses(REFUSALS[0], Refusal(200, None)) is None
    with pytest.raises(UserError, match=r"refusal\.patterns\.bad=\(: not a regular expression"):
        filters("+refusal.patterns.bad='('")


def test_lengths_are_inclusive_bounds() -> None:
    bounds = Length(min_words=2, max_words=3, min_characters=4, max_characters=9)
    given = {"a": {"words": 1, "min_words": 2}, "a b": {"characters": 3, "min_characters": 4}, "a bc": None}
    given |= {"a b c d": {"words": 4, "max_words": 3}, "abcd efgh": None}
    given |= {"abcde efgh": {"characters": 10, "max_characters": 9}}
    assert {text: wrong_length(text, bounds) for text in given} == given


@pytest.mark.parametrize(
    ("answer", "is_json"),
    [('{"a": [1, null]}', True), ("3", True), ("```json\n{}\n```", False), ("{'a': 1}", False), ("NaN", False)],
)
def test_json_is_that_of_the_standard(answer: str, is_json: bool) -> None:
    assert (wrong_format(answer, Format(json=True, pattern=None)) is None) == is_json


def test_a_pattern_is_sought() -> None:
    settings = Format(json=False, pattern=r"Answer: \d+$")
    assert wrong_format("6 times 7.\nAnswer: 42", settings) is None
    assert wrong_format("Answer: 42, I think", settings) == {"pattern": r"Answer: \d+$"}


def test_other_languages_are_found() -> None:
    english = LanguageFilter(Language(["en"], 0.8, 20))
    texts: dict[str, Any] = {
        "Der Zug nach Hamburg fährt heute leider erst um acht Uhr ab.": "de",
        "Le train pour Lyon ne part malheureusement qu'à huit heures.": "fr",
        "列車は残念ながら今日は八時まで出発しませんので、駅で待ちましょう。": "ja",
        "The train to Boston does not leave before eight today, unfortunately.": None,
        "Nein.": None,  # too short
        "Use this loop:\n```python\nfor wert in liste: drucke(wert); summe += wert\n```": None,  # code is not judged
    }
    for text, language in texts.items():
        found = english.other_language(text)
        assert (found and found["language"]) == language, text
    both = LanguageFilter(Language(["en", "de"], 0.8, 20))
    assert both.other_language(next(iter(texts))) is None
    with pytest.raises(UserError, match="unknown language 'english'"):
        LanguageFilter(Language(["english"], 0.8, 20))
