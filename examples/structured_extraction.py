"""Facts out of a text into a pydantic model, which the answer fits whatever the model.

    pip install openai
    python examples/structured_extraction.py

Needs a running server: `make serve`. The lengths bound the answer, so that max_tokens is enough.
"""

import argparse
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, Field

TEXT = (
    "The Louvre in Paris, a museum, opened in 1793. It shows paintings, sculptures and antiquities."
)


class Place(BaseModel):
    """What we want to know. The descriptions of the fields are told to the model."""

    name: str = Field(max_length=30)
    city: str = Field(max_length=30)
    kind: Literal["museum", "park", "station"]
    opened: int = Field(description="the year", ge=1000, le=2100)
    shows: list[str] = Field(max_length=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    options = parser.parse_args()

    client = OpenAI(base_url=options.base_url, api_key="none")
    model = options.model or client.models.list().data[0].id
    print(f"Text for {model}: {TEXT}")
    completion = client.chat.completions.parse(
        model=model,
        messages=[
            {"role": "system", "content": "Extract name, city, kind, opened and shows as JSON."},
            {"role": "user", "content": TEXT},
        ],
        response_format=Place,
        temperature=0,
        max_tokens=200,
    )
    place = completion.choices[0].message.parsed
    if place is None:
        raise SystemExit("The model refused.")
    for name, value in place.model_dump().items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
