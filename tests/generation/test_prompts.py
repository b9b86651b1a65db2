import pytest

import mmgpt
from mmgpt.config import UserError
from mmgpt.datasets.media import Image
from mmgpt.datasets.sample import Message, Text
from mmgpt.generation.prompts import with_exemplars, without_media

CAT, DOG, OWL = Image(b"cat"), Image(b"dog"), Image(b"owl")


def test_few_shot_examples_are_earlier_turns_with_the_instruction_after_the_media():
    shots = mmgpt.FewShot("Name it.", [((CAT,), "cat"), (("a bark", DOG), "dog")])
    assert shots.prompt(OWL) == (
        Message("user", (CAT, Text("Name it."))),
        Message("assistant", (Text("cat"),)),
        Message("user", (Text("a bark"), DOG, Text("Name it."))),
        Message("assistant", (Text("dog"),)),
        Message("user", (OWL, Text("Name it."))),
    )


def test_without_an_instruction_the_parts_stand_alone():
    assert mmgpt.FewShot("", [(("2 + 2 =",), "4")]).prompt("1 + 2 =") == (
        Message.of("user", "2 + 2 ="),
        Message.of("assistant", "4"),
        Message.of("user", "1 + 2 ="),
    )


def test_without_examples_the_prompt_is_one_question():
    assert mmgpt.FewShot("Name it.", []).prompt(OWL) == (Message.of("user", OWL, "Name it."),)


def test_a_model_answers_a_few_shot_prompt(assistant, scenes):
    pictures = [scene.messages[0].parts[0] for scene in scenes[:3]]
    shots = mmgpt.FewShot("How many?", [((pictures[0],), "3"), ((pictures[1],), "1")])
    with_shots = assistant.chat(shots.prompt(pictures[2]), max_new_tokens=8)
    assert with_shots.text != assistant.ask(pictures[2], "How many?", max_new_tokens=8).text


def test_parts_that_are_no_tuple_are_refused_with_the_right_spelling():
    with pytest.raises(UserError, match=r"write them as a tuple, \('a bark',\)"):
        mmgpt.FewShot("Name it.", [("a bark", "dog")]).prompt(OWL)


def test_a_prompt_of_nothing_is_refused():
    with pytest.raises(UserError, match="needs an instruction or parts"):
        mmgpt.FewShot("", [((CAT,), "cat")]).prompt()


def test_exemplars_go_between_the_system_message_and_the_question():
    system, question = Message.of("system", "Be brief."), Message.of("user", OWL, "What?")
    exemplar = (Message.of("system", "Be long."), Message.of("user", CAT, "What?"), Message.of("assistant", "cat"))
    other = (Message.of("user", DOG, "What?"), Message.of("assistant", "dog"))
    assert with_exemplars([exemplar, other], (system, question)) == (system, *exemplar[1:], *other, question)
    assert with_exemplars([other], (question,)) == (*other, question)
    assert with_exemplars([], (system, question)) == (system, question)


def test_without_media_only_the_words_are_left_and_the_roles_stay():
    messages = (Message.of("user", CAT, "What", DOG, "is it?"), Message.of("assistant", "cat"), Message.of("user", OWL))
    assert without_media(messages) == (
        Message.of("user", "What", "is it?"),
        Message.of("assistant", "cat"),
        Message("user", ()),
    )
