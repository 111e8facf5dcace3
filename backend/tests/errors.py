"""The shape that every error of the service has."""

import httpx


def assert_error(response: httpx.Response, status: int, *loc: str) -> None:
    """Assert an error of this `status` in the one shape there is; `loc`: where the one refused value of a 422 stood."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-ID"]
    body = response.json()
    assert list(body) == ["detail"]
    if status != 422:
        assert isinstance(body["detail"], str)
        assert body["detail"]
        return
    assert body["detail"]
    for error in body["detail"]:
        assert list(error) == ["type", "loc", "msg"]
        assert isinstance(error["type"], str)
        assert isinstance(error["msg"], str)
    if loc:
        assert [error["loc"] for error in body["detail"]] == [list(loc)]
