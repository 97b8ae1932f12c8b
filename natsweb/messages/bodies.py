"""The bodies of requests and responses: bytes in Python, base64 in JSON.

And what both models have in common as models: they are frozen, and take nothing that they do not know.
"""

from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
)

__all__ = ["MODEL", "Body"]


def _text_to_bytes(body: Any, info: ValidationInfo) -> Any:
    """Take text from Python as UTF-8; in JSON, text is base64."""
    return body.encode() if isinstance(body, str) and info.mode == "python" else body


Body = Annotated[bytes, BeforeValidator(_text_to_bytes)]

MODEL = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")
