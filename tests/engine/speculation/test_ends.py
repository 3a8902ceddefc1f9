import pytest

from engine.messages import Grammar, SamplingParams
from engine.speculation.ends import Ends
from tests.engine.grammars import ids_of, state_of
from tests.engine.sequences import make_sequence

ENDS = Ends(eos_token_ids=(7,), max_model_len=20)


@pytest.mark.parametrize(
    ("max_tokens", "num_output", "expected"),
    [(9, 0, 8), (9, 8, 0), (9, 9, 0), (99, 0, 16), (99, 16, 0), (99, 17, 0)],
)
def test_one_token_less_than_is_left(max_tokens: int, num_output: int, expected: int) -> None:
    sequence = make_sequence(SamplingParams(max_tokens=max_tokens), output=[5] * num_output)
    assert ENDS.max_drafts(sequence) == expected


def test_up_to_a_token_that_stops_the_sequence() -> None:
    sequence = make_sequence(SamplingParams(max_tokens=9, stop_token_ids=(8,)))
    assert ENDS.before_stop(sequence, [1, 2, 3]) == [1, 2, 3]
    assert ENDS.before_stop(sequence, [1, 7, 3]) == [1]
    assert ENDS.before_stop(sequence, [1, 2, 8]) == [1, 2]
    ignoring = make_sequence(SamplingParams(max_tokens=9, stop_token_ids=(8,), ignore_eos=True))
    assert ENDS.before_stop(ignoring, [1, 7, 3, 8]) == [1, 7, 3]


@pytest.mark.parametrize(
    ("output", "drafts", "expected"),
    [
        ("", "xyy", "xyy"),
        ("", "xyz", "xy"),  # z completes it: it is sampled behind y
        ("", "xyzq", "xy"),
        ("", "xq", "x"),
        ("xy", "yyx", "yy"),
        ("xy", "q", ""),
    ],
)
def test_up_to_what_a_grammar_does_not_allow_or_is_completed_by(
    output: str, drafts: str, expected: str
) -> None:
    sequence = make_sequence(SamplingParams(max_tokens=99), output=ids_of(output))
    sequence.grammar = state_of(Grammar(kind="regex", text="xy+z"))
    assert ENDS.within_grammar(sequence, ids_of(drafts)) == ids_of(expected)
    assert not sequence.grammar.is_complete  # only asked
    assert sequence.grammar.problem is None
