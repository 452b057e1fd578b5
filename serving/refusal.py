"""A request that is refused: a status of HTTP and one clear line."""

from __future__ import annotations


class Refusal(Exception):
    """Ends a request.

    Args:
        status: of HTTP, 400 to 599.
        line: what was given, what is wrong, and what would work.
        retry_after: seconds after which the same request may succeed; 0 does not say.
    """

    def __init__(self, status: int, line: str, retry_after: int = 0) -> None:
        super().__init__(line)
        self.status, self.line = status, " ".join(line.split())
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
