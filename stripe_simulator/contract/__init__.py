"""What stripe-python says about requests and responses. `python -m tests.stripe_contract` compiles the two JSON files.

A type is a name (`str`, `int`, `float`, `bool`, `decimal`, `any`) or a list whose first item says its kind:
`["enum", values]`, `["list", type]`, `["map", type]`, `["object", definition]`, `["union", types]`,
`["optional", type]` (may be absent or null), `["clear", type]` (`""` clears a parameter), `["expandable", type]` (an id
or the object), `["page", type]` and `["page2", type]` (a list of API v1 or v2).
"""
