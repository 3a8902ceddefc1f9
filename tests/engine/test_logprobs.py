import pytest
import torch

from engine.logprobs import most_likely, prompt_logprobs

TOLERANCE = 5e-5  # float32 adds 151,936 probabilities to about 1e-5


@pytest.mark.parametrize("vocab_size", [7, 1000, 151_936])
@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_equals_log_softmax_in_float64(vocab_size: int, num_top: int) -> None:
    logits = torch.randn(9, vocab_size) * 5
    chosen = torch.randint(vocab_size, (9,)).tolist()
    expected = logits.double().log_softmax(-1)
    result = prompt_logprobs(logits, chosen, num_top)
    for row, token_id, logprobs in zip(expected, chosen, result, strict=True):
        assert logprobs.token_id == token_id
        assert logprobs.logprob == pytest.approx(row[token_id].item(), abs=TOLERANCE)
        values, ids = row.sort(descending=True, stable=True)
        assert [top[0] for top in logprobs.top] == ids[:num_top].tolist()
        assert [top[1] for top in logprobs.top] == pytest.approx(
            values[:num_top].tolist(), abs=TOLERANCE
        )


@pytest.mark.parametrize("levels", [1, 2, 5, 40])
@pytest.mark.parametrize("vocab_size", [50, 20_011])
@pytest.mark.parametrize("count", [1, 20])
def test_ties_are_in_order_of_id(levels: int, vocab_size: int, count: int) -> None:
    logits = torch.randint(levels, (6, vocab_size)).float()
    logits[:3] *= 100  # wide steps: some rows with few tokens on top
    logits[0, 17] = 1e4
    expected = [
        sorted(range(vocab_size), key=lambda token_id: (-row[token_id], token_id))[:count]
        for row in logits.tolist()
    ]
    assert most_likely(logits, count).tolist() == expected


def test_padding_is_never_on_top_but_has_mass() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0]])
    [result] = prompt_logprobs(logits, [1], 5, num_valid_tokens=3)
    assert [token_id for token_id, _ in result.top] == [1, 2, 0]
    assert result.logprob == pytest.approx(logits.double().log_softmax(-1)[0, 1].item(), abs=1e-6)


def test_no_rows() -> None:
    assert prompt_logprobs(torch.empty(0, 5), [], 3) == []


def test_one_token_per_row() -> None:
    with pytest.raises(ValueError, match="1 tokens for 2 rows"):
        prompt_logprobs(torch.zeros(2, 5), [1], 3)
