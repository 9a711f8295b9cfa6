"""The counts of requests to the stores are on the page of metrics."""

from tests.support.peers import Peer, new_ground
from tests.support.virtual_time import run_virtual


def test_what_the_stores_asked_of_servers_is_shown() -> None:
    async def main() -> None:
        peer = await Peer(await new_ground(), "one").begin()
        gauges = peer.node._gauges
        flow = gauges._traffic.of("cassandra", "insert executions")
        for round_ in (1, 2):
            flow.requests, flow.items, flow.sent_bytes = round_, 10 * round_, 1_000 * round_
            await gauges.measure()
            page = peer.node.metrics.render().decode()
            labels = '{kind="insert executions",server="cassandra"}'
            assert f"store_requests_total{labels} {round_}.0" in page
            assert f"store_items_total{labels} {10 * round_}.0" in page
            assert f"store_sent_bytes_total{labels} {1_000 * round_}.0" in page
        await peer.drain()

    run_virtual(main())
