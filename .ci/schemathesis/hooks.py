"""What the OpenAPI document has no words for."""

import schemathesis


@schemathesis.hook
def filter_case(_: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out what is judged differently by who knows no more than the document."""
    return not (_has_two_positions(case.query) or _is_short_without_white_space(case.body))


def _has_two_positions(query: object) -> bool:
    # Each is right, and they do not go together.
    return isinstance(query, dict) and {"cursor", "offset"} <= query.keys()


def _is_short_without_white_space(body: object) -> bool:
    # A title is measured without the white space around it.
    title = body.get("title") if isinstance(body, dict) else None
    return isinstance(title, str) and len(title) > 255 >= len(title.strip())
