"""What a call that is refused must say."""

import pytest


def refused(call, error, *words):
    """`call` raises `error` with all of these words in one sentence, which is returned."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message, message
    return message
