"""What a node does about shards, as a pure function: nobody fights, nothing stays without owner."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as with_fields

from cluster.ids import ShardId
from cluster.sharding.placement import MOVED_AT_ONCE, Moves, Sight, decide
from cluster.sharding.ring import desired_owners
from cluster.store.lease_ports import Member
from cluster.store.ports import LogId, ShardRow

COUNT = 8
ME, OTHER = LogId("me/1"), LogId("other/1")


def member(node_id: str, log: str | None = None, state: Any = "serving") -> Member:
    return Member(node_id, LogId(f"{node_id}/1" if log is None else log), "", state, COUNT, "0", 0)


def rows(*owners: LogId | None, epoch: int = 1) -> list[ShardRow]:
    return [ShardRow(ShardId(n), owner, epoch) for n, owner in enumerate(owners)]


def sight(table: list[ShardRow], *members: Member, **known: Any) -> Sight:
    fields: dict[str, Any] = {
        "node_id": "me",
        "own": ME,
        "rows": table,
        "members": {one.node_id: one for one in members},
        "gone": frozenset(),
        "served": {row.shard: row.epoch for row in table if row.owner == ME},
        "given_up": {},
        "is_able": True,
        "is_stable": True,
        "is_draining": False,
    }
    return Sight(**{**fields, **known})


def shards(found: Any) -> list[int]:
    return [row.shard for row in found]


def mine(*node_ids: str) -> list[int]:
    owners = desired_owners(node_ids, shard_count=COUNT)
    return [shard for shard, owner in enumerate(owners) if owner == "me"]


def test_alone_it_claims_all_that_nobody_owns() -> None:
    assert shards(decide(sight(rows(*[None] * COUNT), member("me"))).claim) == list(range(COUNT))


def test_it_counts_itself_in_before_the_others_have_heard_of_it() -> None:
    moves = decide(sight(rows(*[None] * COUNT), member("other")))
    assert shards(moves.claim) == mine("me", "other")


def test_it_claims_only_what_the_ring_desires_for_it() -> None:
    moves = decide(sight(rows(*[None] * COUNT), member("me"), member("other")))
    assert shards(moves.claim) == mine("me", "other") != []


def test_it_leaves_alone_what_a_live_node_owns() -> None:
    moves = decide(sight(rows(*[OTHER] * COUNT), member("me"), member("other")))
    assert moves == Moves(is_restless=True)


def test_it_takes_over_from_a_log_that_is_gone() -> None:
    table = rows(*[OTHER] * COUNT)
    moves = decide(sight(table, member("me"), member("other"), gone={OTHER}))
    # A node whose log is gone is not given any, though it still beats: it may be half dead.
    assert moves.claim == tuple(table)


def test_its_share_only_when_others_live_too() -> None:
    table = rows(*[LogId("dead/1")] * COUNT)
    moves = decide(sight(table, member("me"), member("other"), gone={LogId("dead/1")}))
    assert shards(moves.claim) == mine("me", "other")


def test_a_node_that_was_half_dead_and_has_a_new_log_is_given_shards_again() -> None:
    table = rows(*[OTHER] * COUNT)
    moves = decide(sight(table, member("me"), member("other", log="other/2"), gone={OTHER}))
    assert shards(moves.claim) == mine("me", "other")


@pytest.mark.parametrize("state", ["joining", "draining"])
def test_only_serving_members_count(state: str) -> None:
    moves = decide(sight(rows(*[None] * COUNT), member("me"), member("other", state=state)))
    assert shards(moves.claim) == list(range(COUNT))


def test_a_member_without_a_log_does_not_count() -> None:
    moves = decide(sight(rows(*[None] * COUNT), member("me"), member("other", log="")))
    assert shards(moves.claim) == list(range(COUNT))


@pytest.mark.parametrize("known", [{"is_able": False}, {"is_draining": True}])
def test_a_node_that_is_not_able_or_leaves_claims_nothing(known: dict[str, Any]) -> None:
    table = rows(*[None, OTHER] * (COUNT // 2))
    moves = decide(sight(table, member("me"), gone={OTHER}, **known))
    assert not moves.claim


def test_it_gives_up_what_the_ring_desires_for_another() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), member("me"), member("other")))
    assert shards(moves.give_up) == sorted(set(range(COUNT)) - set(mine("me", "other")))


def test_what_it_gives_up_is_handed_to_the_logs_of_those_whom_the_ring_desires() -> None:
    table = rows(*[ME] * COUNT)
    moves = decide(sight(table, member("me"), member("other"), member("third", log="third/7")))
    desired = desired_owners(("me", "other", "third"), shard_count=COUNT)
    logs = {"other": "other/1", "third": "third/7"}
    assert moves.heirs == {row.shard: logs[desired[row.shard]] for row in moves.give_up}
    assert set(moves.heirs.values()) == set(logs.values())


def test_where_nobody_is_left_to_have_it_it_is_released() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), member("me"), is_draining=True))
    assert (len(moves.give_up), moves.heirs) == (COUNT, {})


def test_not_before_the_members_are_stable() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), member("me"), member("other"), is_stable=False))
    assert moves == Moves(is_restless=True)


def test_not_while_the_store_is_away_for_then_it_could_not_write_them_down() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), member("me"), member("other"), is_able=False))
    assert not moves.give_up


def test_not_when_nobody_else_is_there() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), is_able=False))
    assert moves == Moves()


def test_a_few_at_a_time() -> None:
    table = rows(*[ME] * 256)
    moves = decide(sight(table, member("me"), is_draining=True))
    assert shards(moves.give_up) == list(range(MOVED_AT_ONCE))


def test_draining_it_gives_up_everything_though_nobody_may_be_there_to_take_it() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), member("me"), is_draining=True, is_stable=False))
    assert shards(moves.give_up) == list(range(COUNT))


def test_a_claim_whose_answer_was_lost_is_served() -> None:
    table = rows(*[ME] * COUNT)
    moves = decide(sight(table, member("me"), served={ShardId(0): 1}))
    assert shards(moves.serve) == list(range(1, COUNT))


def test_or_released_if_this_node_may_not_serve_any_more() -> None:
    moves = decide(sight(rows(*[ME] * COUNT), served={}, is_draining=True))
    assert (shards(moves.release), moves.serve, moves.give_up) == (list(range(COUNT)), (), ())


def test_a_shard_is_never_served_again_in_the_epoch_in_which_it_was_given_up() -> None:
    """Its release may still be on its way: another node could claim it at any moment."""
    table = rows(*[ME] * COUNT)
    given_up = {ShardId(0): 1}
    served = {row.shard: 1 for row in table[1:]}
    moves = decide(sight(table, member("me"), served=served, given_up=given_up))
    assert (shards(moves.release), moves.serve) == ([0], ())


def test_but_served_in_a_later_one() -> None:
    """A → B → A: given up in epoch 1, claimed by another in 2, back in 3."""
    table = [with_fields(row, epoch=3) for row in rows(*[ME] * COUNT)]
    served = {row.shard: 3 for row in table[1:]}
    moves = decide(sight(table, member("me"), served=served, given_up={ShardId(0): 1}))
    assert (shards(moves.serve), moves.release) == ([0], ())


def test_it_is_overruled_when_a_shard_it_serves_has_another_owner() -> None:
    table = rows(*[ME] * (COUNT - 1), OTHER)
    moves = decide(sight(table, member("me"), served={ShardId(COUNT - 1): 1}))
    assert moves.overruled == table[-1]


def test_or_another_epoch() -> None:
    table = rows(*[ME] * COUNT, epoch=2)
    assert decide(sight(table, served={ShardId(3): 1})).overruled == table[3]


def test_what_was_free_for_long_is_anybodys() -> None:
    others = sorted(set(range(COUNT)) - set(mine("me", "other")))
    known = {"overdue": {ShardId(others[0])}}
    moves = decide(sight(rows(*[None] * COUNT), member("me"), member("other"), **known))
    assert shards(moves.claim) == sorted([*mine("me", "other"), others[0]])


OWNERS = st.sampled_from([None, "a/1", "b/1", "c/1", "dead/1"])


@given(
    owners=st.lists(OWNERS, min_size=COUNT, max_size=COUNT),
    views=st.lists(st.sets(st.sampled_from("abc")), min_size=3, max_size=3),
)
def test_whatever_each_sees_of_the_others_only_free_shards_are_claimed_and_own_ones_given_up(
    owners: list[str | None], views: list[set[str]]
) -> None:
    table = rows(*[None if owner is None else LogId(owner) for owner in owners])
    for node_id, view in zip("abc", views, strict=True):
        own = LogId(f"{node_id}/1")
        members: Mapping[str, Member] = {one: member(one) for one in view}
        seen = sight(
            table,
            *members.values(),
            node_id=node_id,
            own=own,
            gone={LogId("dead/1")},
            served={row.shard: 1 for row in table if row.owner == own},
        )
        moves = decide(seen)
        assert {row.owner for row in moves.claim} <= {None, "dead/1"}
        assert {row.owner for row in moves.give_up} <= {own}
        assert moves.overruled is None


@given(owners=st.lists(OWNERS, min_size=COUNT, max_size=COUNT), claims_first=st.booleans())
def test_with_the_same_view_everything_comes_to_rest_at_the_desired_owners(
    owners: list[str | None], claims_first: bool
) -> None:
    table = rows(*[None if owner is None else LogId(owner) for owner in owners])
    members = [member(one) for one in "abc"]
    for _ in range(4):
        for node_id in "abc" if claims_first else "cba":
            own = LogId(f"{node_id}/1")
            moves = decide(
                sight(
                    table,
                    *members,
                    node_id=node_id,
                    own=own,
                    gone={LogId("dead/1")},
                    served={row.shard: row.epoch for row in table if row.owner == own},
                )
            )
            for row in moves.give_up:
                table[row.shard] = with_fields(
                    row, owner=moves.heirs[row.shard], epoch=row.epoch + 1
                )
            for row in moves.claim:
                table[row.shard] = with_fields(row, owner=own, epoch=row.epoch + 1)
    desired = [f"{owner}/1" for owner in desired_owners("abc", shard_count=COUNT)]
    assert [row.owner for row in table] == desired
