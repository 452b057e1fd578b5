"""Telling other machines of results: a webhook, and a broker of MQTT. Neither ever makes judging wait."""

from __future__ import annotations

import secrets
from typing import Any

from serving.mqtt import Publisher
from serving.numbers import Numbers
from serving.store import Store
from serving.webhook import Sender


class Signals:
    """Hands each result to the webhook's outbox, in the transaction that records it, and to the broker.

    Args:
        store: with the outbox.
        numbers: counts.
        webhook: sends the outbox; None without a webhook.
        broker: of MQTT; None without one.
    """

    def __init__(self, store: Store, numbers: Numbers, webhook: Sender | None, broker: Publisher | None) -> None:
        self._store, self._numbers, self._webhook, self._broker = store, numbers, webhook, broker

    def keep(self, result: dict[str, Any]) -> dict[str, Any]:
        """Keep a result for the webhook; called within the transaction that records it.

        Returns:
            The event, for `tell`.
        """
        event = {"event": secrets.token_hex(16), **result}  # so that a receiver can tell a repeated message
        if self._webhook is not None:
            dropped = self._store.outbox.put(event)
            if dropped:
                self._numbers.count("webhook_dropped", dropped)
        return event

    def tell(self, event: dict[str, Any]) -> None:
        """Tell of a result; called after the transaction."""
        if self._webhook is not None:
            self._webhook.wake()
        if self._broker is not None:
            self._broker.publish(event)

    def close(self) -> None:
        """End; what the webhook has not accepted stays in the store for the next start."""
        if self._webhook is not None:
            self._webhook.close()
        if self._broker is not None:
            self._broker.close()
