import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor

from engine.logits_processors import apply_logits_processors, has_processors
from engine.messages import SamplingParams
from tests.engine.sequences import make_sequence

VOCAB = 20
EOS = (18, 19)
MASKED = float("-inf")


def processed(params: SamplingParams, logits: torch.Tensor, num_output: int = 0) -> torch.Tensor:
    result = logits.clone()
    apply_logits_processors(result, [make_sequence(params, [1, 2], [3] * num_output)], EOS)
    return result


def test_bias_is_added_to_the_own_row_only() -> None:
    logits = torch.randn(3, VOCAB)
    rows = [{0: 5.0, 19: -100.0}, {}, {0: 1.5}]
    expected = logits.clone()
    for row, bias in enumerate(rows):
        for token_id, value in bias.items():
            expected[row, token_id] += value
    sequences = [make_sequence(SamplingParams(max_tokens=9, logit_bias=bias)) for bias in rows]
    apply_logits_processors(logits, sequences, EOS)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("num_output", [0, 2, 3, 4])
def test_min_tokens_masks_eos_as_transformers_does(num_output: int) -> None:
    logits = torch.randn(1, VOCAB)
    expected = MinNewTokensLengthLogitsProcessor(2, 3, list(EOS))(
        torch.tensor([[1, 2] + [3] * num_output]), logits.clone()
    )
    assert torch.equal(
        processed(SamplingParams(max_tokens=9, min_tokens=3), logits, num_output), expected
    )


def masked_ids(logits: torch.Tensor) -> list[int]:
    return (logits[0] == MASKED).nonzero().flatten().tolist()


def test_min_tokens_masks_stop_tokens_too() -> None:
    params = SamplingParams(max_tokens=9, min_tokens=1, stop_token_ids=(4, 18, 999))
    assert masked_ids(processed(params, torch.zeros(1, VOCAB))) == [4, 18, 19]


def test_min_tokens_leaves_an_ignored_eos_alone() -> None:
    params = SamplingParams(max_tokens=9, min_tokens=1, stop_token_ids=(4,), ignore_eos=True)
    assert masked_ids(processed(params, torch.zeros(1, VOCAB))) == [4]


def test_ignore_eos_masks_nothing() -> None:
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    assert masked_ids(processed(params, torch.zeros(1, VOCAB))) == []


def test_bias_cannot_bring_back_a_masked_token() -> None:
    params = SamplingParams(max_tokens=9, min_tokens=1, logit_bias={18: 100.0})
    assert masked_ids(processed(params, torch.zeros(1, VOCAB))) == [18, 19]


def test_penalties_see_the_biased_logit() -> None:
    # -1 + 3 = 2 is positive, so the repetition penalty divides it
    params = SamplingParams(max_tokens=9, logit_bias={1: 3.0}, repetition_penalty=2.0)
    assert processed(params, torch.full((1, VOCAB), -1.0))[0, 1].item() == 1.0


def test_has_processors() -> None:
    def has(num_output: int = 0, **values: object) -> bool:
        params = SamplingParams(max_tokens=9, **values)  # type: ignore[arg-type]
        return has_processors(make_sequence(params, [1], [3] * num_output))

    assert not has()
    assert not has(temperature=0.5, top_k=4, top_p=0.3, min_p=0.1, ignore_eos=True, logprobs=3)
    assert has(logit_bias={1: 1.0})
    assert has(min_tokens=2, num_output=1)
    assert not has(min_tokens=2, num_output=2)
    assert has(repetition_penalty=1.1)
    assert has(presence_penalty=0.1)
    assert has(frequency_penalty=0.1)
