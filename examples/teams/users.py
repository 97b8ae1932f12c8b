"""Users: one of two services. Run it with `natsweb run examples/teams/users.py`."""

from pydantic import BaseModel

from natsweb import HTTPError, Service

svc = Service("users", version="1.0.0")


class User(BaseModel):
    """Who buys."""

    id: int
    name: str


USERS = {1: User(id=1, name="Ann"), 2: User(id=2, name="Bob")}


@svc.get("/users/<id>")
async def show(id: int) -> User:
    """Show a user."""
    if user := USERS.get(id):
        return user
    raise HTTPError(404, f"no user {id}", reason="no_user")


if __name__ == "__main__":
    svc.run()
