import shutil

import pytest

from mmgpt.config import UserError
from mmgpt.generation.assistant import Assistant

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU takes g++")


@needs_compiler
def test_a_compiled_step_gives_the_answers_of_the_plain_one_alone_and_in_rows(make_assistant, conversations):
    plain = make_assistant()
    compiled = Assistant(plain.bundle, compile=True)
    for some in (conversations[:1], conversations):
        wanted, found = (one.chat(some, max_new_tokens=12, batch_size=4) for one in (plain, compiled))
        assert [reply.tokens for reply in found] == [reply.tokens for reply in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_machine_without_a_compiler_is_told_what_is_missing(make_assistant, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile: no C\+\+ compiler found \(g\+\+ or clang\+\+, or set CXX\)"):
        Assistant(make_assistant().bundle, compile=True)
