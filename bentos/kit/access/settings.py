"""What decides who is let in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError

# Asymmetric ones only: with a public key known to all, HMAC would let anybody sign (RFC 8725, 2.1).
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """What a token must be."""

    issuer: str
    audience: str
    keys: str
    """File or URL of the issuer's JSON Web Key Set; empty: where its OpenID configuration says."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    role_claim: str = "darkroom_role"
    """Claim with a role, or a list that holds one. Dots lead into objects: `realm_access.roles`."""
    models_claim: str = "darkroom_models"
    """Claim with the only models that a token is good for; where it is missing, all."""
    per_minute: int | None = None
    """Images a minute for each subject."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.algorithms) - set(ALGORITHMS))
        if unknown or not self.algorithms:
            raise UserError(
                f"DARKROOM_JWT_ALGORITHMS: {', '.join(unknown) or 'none'}: allowed are {', '.join(ALGORITHMS)}"
            )
        if not self.audience:
            raise UserError("DARKROOM_JWT_AUDIENCE: expected the audience that tokens of DARKROOM_JWT_ISSUER must have")


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Of one serving process."""

    required: bool = True
    """False lets anybody do anything; only for a process that nobody else can reach."""
    keys_url_file: Path | None = None
    """File with the PostgreSQL URL of the key store; None: there are no API keys."""
    platform_key_file: Path | None = None
    """File with the key by which the supervisor proves this process."""
    token_rules: TokenRules | None = None
    """None: no tokens are taken."""
    num_processes: int = 1
    """Processes of the deployment, each of which gives its share of a rate."""
