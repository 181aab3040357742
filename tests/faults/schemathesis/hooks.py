"""What schemathesis cannot know from the description of the API: the exceptions to its checks, each with its reason, and
what an NDJSON body is. Used by tests/faults/fuzz.rs."""

import json

import schemathesis
from hypothesis import strategies
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import RejectedPositiveData


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether a failure counts. Requests that are taken or refused against the description, one by one:"""
    # HTTP allows a list of codings that is empty, and it names none.
    if isinstance(failure, AcceptedNegativeData) and (case.headers or {}).get("Content-Encoding") == "":
        return False
    if not isinstance(failure, RejectedPositiveData) or response.status_code not in (400, 422):
        return True
    problem = response.json()
    # To the description, a body is what it is before it is compressed; these are sent as they are.
    if problem["type"] == "/problems/broken-compression":
        return False
    if response.status_code == 400:
        return True
    query = case.query or {}
    kind, place, detail = problem["type"], problem.get("place"), problem["detail"]
    # A cursor is made by the server. One that is made up fits the description of its form, and is refused.
    if kind == "/problems/invalid-cursor" and "cursor" in query:
        return False
    # OpenAPI has no way to say that a parameter is only for one value of another one.
    if place == "position" and ("cursor" in query or query.get("order") != "asc"):
        return False
    if place == "wait" and query.get("order") != "asc":
        return False
    # The description is of every server; this one has no broker.
    if place == "ack" and query.get("ack") == "queued":
        return False
    # A date-time of RFC 3339 may be in year 0 or 10000 in UTC; the description says which years are taken, in words.
    if detail.split("; ")[0].endswith("the year must be 0001 to 9999 in UTC"):
        return False
    return True


@schemathesis.hook
def map_query(context, query):
    """A query for events that are yet to come waits, and nothing comes; a second says as much as thirty do."""
    if query and query.get("wait") in [str(seconds) for seconds in range(2, 31)] + list(range(2, 31)):
        query["wait"] = 1
    return query


name = strategies.text(strategies.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=255)
event = strategies.fixed_dictionaries(
    {
        "topic": name,
        "event_id": name,
        "timestamp": strategies.datetimes().map(lambda time: time.isoformat() + "Z"),
        "source": name,
    },
    optional={"payload": strategies.dictionaries(name, strategies.integers() | name, max_size=3)},
)
lines = strategies.lists(event.map(json.dumps), min_size=1, max_size=5).map("\n".join)
# To the description, NDJSON is a text.
schemathesis.openapi.media_type("application/x-ndjson", lines.map(str.encode))
