"""What the OpenAPI document has no words for."""

import schemathesis


@schemathesis.hook
def filter_case(_: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out queries with both `cursor` and `offset`: each is right and they do not go together."""
    return not {"cursor", "offset"} <= set(case.query or ())
