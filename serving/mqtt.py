"""Results to a broker of MQTT."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

from serving.numbers import Numbers
from utils import LOGGER, InputError

MOST_WAITING = 1000  # messages that wait for the broker
LONGEST_PAUSE = 60  # seconds before another try to connect
LAST_PAUSE = 2.0  # seconds that the end waits for the broker
PORTS = {"mqtt": 1883, "mqtts": 8883}
USER, PASSWORD = "GLASS_MQTT_USER", "GLASS_MQTT_PASSWORD"  # environment variables


def parse_address(text: str) -> tuple[str, int, bool]:
    """Host, port, and whether TLS is used, from `HOST`, `HOST:PORT` or `mqtts://HOST:PORT`.

    Raises:
        InputError: it is none of these.
    """
    try:
        parts = urlsplit(text if "://" in text else f"mqtt://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in PORTS or not parts.hostname or port == 0 or parts.path or parts.username:
        raise InputError(
            f"--mqtt {text}: possible are HOST, HOST:PORT and mqtts://HOST:PORT; {USER} and {PASSWORD} in the "
            "environment name a user"
        )
    return parts.hostname, port or PORTS[parts.scheme], parts.scheme == "mqtts"


def topic_of(recipe: str) -> str:
    """The topic of a recipe's results; the characters + # / have a meaning in topics."""
    return f"glass/{re.sub(r'[+#/]', '_', recipe)}"


class Publisher:
    """A client that publishes results with quality 1 and connects again by itself.

    Args:
        address: see `parse_address`.
        numbers: counts what is given up.

    Raises:
        InputError: the address is not one, or paho-mqtt is not installed.
    """

    def __init__(self, address: str, numbers: Numbers) -> None:
        host, port, tls = parse_address(address)
        try:
            from paho.mqtt.client import Client  # an extra
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise InputError(
                "--mqtt needs paho-mqtt, which is not installed: pip install -r requirements/mqtt.txt"
            ) from error
        self._numbers, self._latest = numbers, None
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_queued_messages_set(MOST_WAITING)
        self._client.reconnect_delay_set(1, LONGEST_PAUSE)
        self._client.on_connect_fail = lambda *_: LOGGER.warning("mqtt: %s:%d does not answer", host, port)
        if os.environ.get(USER):
            self._client.username_pw_set(os.environ[USER], os.environ.get(PASSWORD))
        if tls:
            self._client.tls_set()
        self._client.connect_async(host, port)
        self._client.loop_start()

    def publish(self, event: dict[str, Any]) -> None:
        """Publish a result, now or once there is a connection; never waits."""
        info = self._client.publish(topic_of(event["recipe"]), json.dumps(event, allow_nan=False), qos=1)
        if info.rc in (0, 4):  # sent, or kept until there is a connection
            self._latest = info
        else:
            self._numbers.count("mqtt_dropped")

    def close(self) -> None:
        """Disconnect; what the broker does not accept in a moment is given up."""
        if self._latest is not None and self._client.is_connected():
            self._latest.wait_for_publish(LAST_PAUSE)
        self._client.disconnect()
        self._client.loop_stop()
