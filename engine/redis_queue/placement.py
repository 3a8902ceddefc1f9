"""Which engine a request should go to: the one that has its prefix cached, unless that is loaded.

Beginnings are remembered at lengths that double, in Redis, so that all servers know what one has
placed.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from engine.messages import EngineRequest

SHORTEST_PREFIX = 64  # tokens
REMEMBERED_S = 600  # by then others will have pushed it out of the cache
_SLACK = 4  # sequences more than the least loaded engine has, which a prefix is worth


@dataclass(slots=True)
class Load:
    """Of an engine, in sequences."""

    num_taken: int
    max_num_seqs: int


def prefix_digests(request: EngineRequest) -> list[str]:
    """Of the beginnings of a prompt, the longest first; what shares no cache shares no digest."""
    ids = array("I", request.prompt_token_ids)
    digest = blake2b(request.cache_salt.encode(errors="surrogatepass"), digest_size=16)
    digests, done, length = [], 0, SHORTEST_PREFIX
    while length <= len(ids):
        digest.update(ids[done:length].tobytes())
        digests.append(digest.hexdigest())
        done, length = length, 2 * length
    return digests[::-1]


def choose(holders: Sequence[str | None], loads: Mapping[str, Load]) -> str | None:
    """The engine to send a request to; None: whichever takes it first.

    `holders`: who has computed each of the prompt's beginnings, the longest first. `loads` is of
    the engines that are alive.
    """
    holder = next((name for name in holders if name is not None and name in loads), None)
    if holder is None:
        return None
    load, least = loads[holder], min(each.num_taken for each in loads.values())
    is_loaded = load.num_taken >= load.max_num_seqs or load.num_taken > 2 * least + _SLACK
    return None if is_loaded else holder
