from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from flwr.app import Array, Error, Message, MetricRecord, RecordDict

from fedsim.grids.flower_internals import from_record, set_message_id, take_identity, to_record
from fedsim.server.edge import admit, as_weights

PARAMETERS = {"w": torch.ones(2, 3), "b": torch.zeros(3)}
BUFFERS = {"bn.running_var": (3,)}


def reply(client: int = 0, change: Callable[[RecordDict], None] = lambda content: None) -> Message:
    take_identity(1)
    request = Message(RecordDict(), dst_node_id=client + 1, message_type="train")
    set_message_id(request, "1")
    content = RecordDict(
        {
            "update": to_record({"w": torch.full((2, 3), 2.0), "b": torch.ones(3)}),
            "buffers": to_record({"bn.running_var": torch.ones(3)}),
            "metrics": MetricRecord({"num-examples": 5, "num-steps": 1, "train-loss": 0.5}),
        }
    )
    change(content)
    return Message(content, reply_to=request)


def setting(record: str, name: str, value: torch.Tensor | None) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        if value is None:
            del content[record][name]  # type: ignore[union-attr]
        else:
            content[record][name] = to_record({name: value})[name]  # type: ignore[index,call-overload]

    return change


def test_good_replies_are_admitted_in_the_order_of_the_clients() -> None:
    admitted, dropouts = admit([reply(2), reply(0), reply(1)], PARAMETERS, BUFFERS)
    assert [one.client for one in admitted] == [0, 1, 2]
    assert not dropouts
    assert (admitted[0].examples, admitted[0].steps, admitted[0].loss) == (5, 1, 0.5)


nan, inf = torch.full((3,), float("nan")), torch.tensor([1.0, float("inf"), -float("inf")])
CASES = {
    "NaN in the update": (setting("update", "b", nan), "update/b holds NaN"),
    "Inf in the update": (setting("update", "b", inf), "update/b holds NaN|update/b holds Inf"),
    "NaN in the statistics": (setting("buffers", "bn.running_var", nan), "buffers/bn.running_var holds NaN"),
    "wrong shape": (setting("update", "b", torch.ones(4)), r"update/b has shape \(4,\), not \(3,\)"),
    "wrong type": (setting("update", "b", torch.ones(3, dtype=torch.int64)), "update/b has type torch.int64"),
    "missing key": (setting("update", "w", None), "update/w is missing"),
    "unknown key": (setting("update", "v", torch.ones(1)), "update/v is not a name"),
    "no update": (lambda content: content.pop("update"), "record 'update' is missing"),
    "no metrics": (lambda content: content.pop("metrics"), "record 'metrics' is missing"),
    "no statistics": (lambda content: content.pop("buffers"), "record 'buffers' is missing"),
    "trained on nothing": (
        lambda content: content.__setitem__(
            "metrics", MetricRecord({"num-examples": 0, "num-steps": 1, "train-loss": 0.0})
        ),
        "trained on nothing",
    ),
    "1e38 in the update": (setting("update", "b", torch.full((3,), 1e38)), r"update/b holds 1e\+38"),
    "1e38 in the statistics": (setting("buffers", "bn.running_var", torch.full((3,), 1e38)), "var holds 1e"),
    "double precision": (setting("update", "b", torch.ones(3).double()), "update/b has type torch.float64, not"),
    "half precision": (setting("update", "b", torch.ones(3).half()), "update/b has type torch.float16, not"),
    **{
        f"{value} examples": (
            lambda content, value=value: content["metrics"].__setitem__("num-examples", value),
            "metrics/num-examples is (.* and counts nothing|not a number, or too large)",
        )
        for value in (float("nan"), float("inf"), 2.5, 10**30, 10**400, [5])
    },
    **{
        f"a loss of {value}": (
            lambda content, value=value: content["metrics"].__setitem__("train-loss", value),
            "metrics/train-loss is",
        )
        for value in (float("nan"), float("-inf"), 10**400)
    },
    "bytes that are no array": (
        lambda content: content["update"].__setitem__("b", Array("float32", (3,), "numpy.ndarray", b"junk")),
        "update/b cannot be read",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_reply_is_refused_by_client_and_key_and_the_rest_stays(name: str) -> None:
    change, words = CASES[name]
    admitted, dropouts = admit([reply(0), reply(1, change)], PARAMETERS, BUFFERS)  # type: ignore[arg-type]
    assert [one.client for one in admitted] == [0]
    (dropout,) = dropouts
    assert dropout.client == 1
    assert __import__("re").search(words, dropout.reason), dropout.reason


def test_a_large_update_is_admitted() -> None:
    """Larger than any other by far, and its squares still are numbers; the sum of many such entries is none."""
    big = setting("update", "w", torch.full((2, 3), 9e17))
    admitted, dropouts = admit([reply(0, big)], PARAMETERS, BUFFERS)
    assert len(admitted) == 1
    assert not dropouts


def request(client: int, round_: int = 1, kind: str = "train") -> Message:
    return Message(RecordDict(), dst_node_id=client + 1, message_type=kind, group_id=str(round_))


def answer(client: int, round_: int = 1, kind: str = "train", value: float = 1.0) -> Message:
    asked = request(client, round_, kind)
    set_message_id(asked, "1")
    return Message(reply(client, setting("update", "b", torch.full((3,), value))).content, reply_to=asked)


def test_a_reply_answers_a_request_of_its_round() -> None:
    """What an earlier round left behind, what answers something else, and what nobody asked for is turned down."""
    take_identity(1)
    requests = [request(client, 2) for client in range(4)]
    replies = [answer(0, 2), answer(1, 1), answer(2, 2, "query.keys"), answer(9, 2)]
    admitted, dropouts = admit(replies, PARAMETERS, BUFFERS, requests)
    assert [one.client for one in admitted] == [0]
    assert {one.client: one.reason.partition(":")[0] for one in dropouts} == {
        1: "answers another request than this round's",
        2: "answers another request than this round's",
        9: "was not asked in this round",
    }
    assert "'1', not '2'" in dropouts[0].reason


def test_of_two_replies_of_a_client_one_counts() -> None:
    take_identity(1)
    requests = [request(client, 2) for client in range(2)]
    replies = [answer(1, 1, value=7.0), answer(1, 2, value=2.0), answer(1, 2, value=3.0), answer(0, 2)]
    admitted, dropouts = admit(replies, PARAMETERS, BUFFERS, requests)
    assert [(one.client, float(one.update["b"][0])) for one in admitted] == [(0, 1.0), (1, 2.0)]
    assert not dropouts


def test_a_reason_can_be_read_however_long_it_is() -> None:
    failed = Message(Error(1, "no\x1b[2J\n" * 10_000), reply_to=request(1))
    _, (dropout,) = admit([failed], PARAMETERS, BUFFERS)
    assert len(dropout.reason) < 2000 and dropout.reason.isprintable()


def test_an_error_is_a_dropout_with_its_reason() -> None:
    good = reply(0)
    failed = Message(
        Error(1, "ValueError: no data"), reply_to=Message(RecordDict(), dst_node_id=2, message_type="train")
    )
    admitted, (dropout,) = admit([failed, good], PARAMETERS, BUFFERS)
    assert (dropout.client, dropout.reason) == (1, "ValueError: no data")
    assert len(admitted) == 1


def test_updates_become_weights_at_the_edge() -> None:
    (admitted,), _ = admit([reply(0)], PARAMETERS, BUFFERS)
    message = as_weights(admitted, PARAMETERS, 0.25, double=False)
    weights = from_record(message.content["arrays"])  # type: ignore[arg-type]
    assert torch.equal(weights["w"], torch.full((2, 3), 0.5))
    assert torch.equal(weights["b"], torch.full((3,), -0.25))
    assert list(message.content.array_records) == ["arrays"], "buffers must never reach a strategy"
    assert torch.equal(PARAMETERS["w"], torch.ones(2, 3))


def numbers(**values: float) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        given = {name.replace("_", "-"): value for name, value in values.items()}
        content["metrics"] = MetricRecord({"num-examples": 5, "num-steps": 1, **given})

    return change


def test_a_client_may_keep_its_loss_and_say_what_privacy_has_cost() -> None:
    admitted, dropouts = admit([reply(change=numbers(epsilon=1.5, delta=1e-5))], PARAMETERS, BUFFERS)
    assert not dropouts
    assert (admitted[0].loss, admitted[0].spent) == (None, (1.5, 1e-5))
    admitted, _ = admit([reply()], PARAMETERS, BUFFERS)
    assert admitted[0].spent is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"epsilon": 1.0}, "without each other"),
        ({"delta": 1e-5}, "without each other"),
        ({"epsilon": -1.0, "delta": 1e-5}, "epsilon -1.0"),
        ({"epsilon": float("nan"), "delta": 1e-5}, "epsilon nan"),
        ({"epsilon": 1.0, "delta": 1.0}, "delta 1.0"),
    ],
)
def test_a_cost_of_privacy_that_is_none_is_refused(values: dict[str, float], reason: str) -> None:
    admitted, dropouts = admit([reply(change=numbers(**values))], PARAMETERS, BUFFERS)
    assert not admitted and reason in dropouts[0].reason
