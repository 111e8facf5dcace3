"""The common format of errors."""

import httpx


def assert_error(response: httpx.Response, status: int, *loc: str) -> None:
    """Assert the common format and this `status`; `loc`: the location of the only invalid value of a 422."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-ID"]
    body = response.json()
    if status != 422:
        assert list(body) == ["detail"]
        assert body["detail"].endswith(".")
        return
    assert list(body) == ["detail", "errors"]
    assert body["errors"]
    for error in body["errors"]:
        assert list(error) == ["type", "loc", "msg"]
        assert isinstance(error["type"], str)
        assert isinstance(error["msg"], str)
    assert body["detail"] == "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in body["errors"])
    if loc:
        assert [error["loc"] for error in body["errors"]] == [list(loc)]
