#!/usr/bin/env python3
"""Publishes an event straight to NATS. Needs `pip install nats-py`.

usage: publish.py [nats url]
"""
import asyncio
import sys

import nats

URL = sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:42220"


async def main():
    connection = await nats.connect(URL)
    stream = connection.jetstream()
    # The ack means: accepted, on disk. The header is the idempotency key.
    ack = await stream.publish(
        "relay.events.default.order.created",
        b'{"order_id": 42, "total": 99.99}',
        headers={"Nats-Msg-Id": "order-42-created"},
    )
    print("accepted at position", ack.seq)
    await connection.close()


asyncio.run(main())
