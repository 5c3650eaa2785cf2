"""Email/get: metadata, list properties, header forms, bodies."""

from __future__ import annotations

from tests.lib.jmap import message, with_jmap


@with_jmap()
async def test_metadata_and_list_properties(jmap):
    email = await jmap.add(message("Käse", Message_ID="<1@x>"), system=1)
    found = await jmap.get(email)
    assert found["id"] == email
    assert found["threadId"].startswith("t")
    assert found["mailboxIds"] == {jmap.roles["inbox"]: True}
    assert found["keywords"] == {"$seen": True}
    assert found["receivedAt"] == "2027-01-15T08:00:00Z"
    assert found["subject"] == "Käse"
    assert found["messageId"] == ["1@x"]
    assert found["from"] == [{"name": "Bob", "email": "bob@example.net"}]
    assert found["cc"] is None
    assert found["preview"] == "Some text."
    assert found["hasAttachment"] is False
    assert "headers" not in found
