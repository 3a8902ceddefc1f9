"""The real application around a fake engine and a byte tokenizer, reached without a socket."""

import httpx
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from engine.fake import FakeEngine
from protocol.library_tokenizer import LibraryTokenizer
from protocol.prompt import ChatTemplate
from protocol.tokenizer import Tokenizer
from server.admission import Admission
from server.app import create_app
from server.config import ServerConfig
from server.metrics import Metrics
from server.state import AppState, ServedModel

NAMES = ("org/small", "alias")
END = 256  # id of <|end|>; below it, ids are bytes in the order of the GPT-2 alphabet
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ answerer | default('assistant') }}:{% endif %}"
)


def byte_tokenizer_json() -> str:
    """A tokenizer.json: one id for each byte, <|end|> and <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ("<|end|>", "<s>")]
    )
    text: str = backend.to_str()
    return text


def byte_tokenizer(*, add_bos_token: bool = False) -> Tokenizer:
    config = {"eos_token": "<|end|>", "bos_token": "<s>", "add_bos_token": add_bos_token}
    return LibraryTokenizer.from_json(byte_tokenizer_json(), config)


def small_state(
    config: ServerConfig | None = None,
    engine: FakeEngine | None = None,
    *,
    add_bos_token: bool = False,
    has_chat_template: bool = True,
) -> AppState:
    tokenizer = byte_tokenizer(add_bos_token=add_bos_token)
    engine = engine or FakeEngine(eos_token_ids=[END])
    model = ServedModel(
        names=NAMES,
        created=1_700_000_000,
        tokenizer=tokenizer,
        chat_template=ChatTemplate(TEMPLATE, tokenizer) if has_chat_template else None,
        eos_token_ids=(END,),
        sampling_defaults={},
        max_model_len=100,
    )
    config = config or ServerConfig()
    return AppState(
        config=config,
        engine=engine,
        model=model,
        metrics=Metrics(NAMES[0], engine),
        admission=Admission(engine.stats, config.max_waiting),
    )


def client_of(state: AppState) -> httpx.AsyncClient:
    """An HTTP client of the application; use it as a context manager."""
    transport = httpx.ASGITransport(create_app(state))
    return httpx.AsyncClient(transport=transport, base_url="http://test")
