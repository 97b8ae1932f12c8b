"""Multiple: two services under one gateway.

Run them with `natsweb run examples/multiple/app.py:foo examples/multiple/app.py:bar`.
"""

from natsweb import Service

foo = Service("foo", version="1.0.0", root="api.foo")
bar = Service("bar", version="1.0.0", root="api.bar")


@foo.get("/")
@foo.get("/<path:rest>")
async def show_foo(rest: str = "") -> dict[str, str]:
    """Say who answers, and for which path below the service's own root."""
    return {"service": "foo", "path": f"/{rest}"}


@bar.get("/")
@bar.get("/<path:rest>")
async def show_bar(rest: str = "") -> dict[str, str]:
    """Say who answers, and for which path below the service's own root."""
    return {"service": "bar", "path": f"/{rest}"}
