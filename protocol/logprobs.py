"""How a single token and its log-probability are written in replies.

A token can be a part of a character. OpenAI spells such a token by its bytes: `\\xe4\\xbd` in chat,
`bytes:\\xe4\\xbd` in completions.
"""

# JSON has no infinity; OpenAI's number for "next to impossible"
LOWEST_LOGPROB = -9999.0


def token_text(token_bytes: bytes, *, mark: str = "") -> str:
    """Return the token's text if it is whole characters, else `mark` and its bytes as escapes."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
