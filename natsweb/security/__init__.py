"""Who calls: `user: Annotated[User, Auth(bearer)]`, checked before anything else of the request is looked at.

Schemes know how credentials travel, `Auth` asks them for a handler, `OIDC` verifies tokens of an issuer.
"""

from natsweb.security.auth import Auth, stand_in
from natsweb.security.oidc import OIDC
from natsweb.security.schemes import ApiKey, Basic, Bearer, Credentials, Scheme

__all__ = ["OIDC", "ApiKey", "Auth", "Basic", "Bearer", "Credentials", "Scheme", "stand_in"]
