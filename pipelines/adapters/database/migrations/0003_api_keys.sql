-- API keys (their digests only), and what each credential has used. Serving processes have a role of their own, which
-- may call the two functions at the end and nothing else.

CREATE TABLE api_keys (
    id         text PRIMARY KEY,
    digest     char(64) NOT NULL UNIQUE,
    name       text NOT NULL,
    role       text NOT NULL CHECK (role IN ('viewer', 'predictor', 'operator', 'admin')),
    models     text[] NOT NULL DEFAULT '{}',
    per_minute integer CHECK (per_minute > 0),
    per_day    bigint CHECK (per_day > 0),
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
-- A revoked key's name is free again, for the key that takes its place.
CREATE UNIQUE INDEX api_keys_by_name ON api_keys (name) WHERE revoked_at IS NULL;

CREATE TABLE usage (
    credential text NOT NULL,
    day        date NOT NULL,
    images     bigint NOT NULL,
    PRIMARY KEY (credential, day)
);

CREATE FUNCTION find_api_key(wanted text)
RETURNS TABLE (id text, role text, models text[], per_minute integer, per_day bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT id, role, models, per_minute, per_day FROM api_keys
    WHERE digest = wanted::char(64) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
$$;

-- Adds to what credentials have used, and says what all processes together have counted.
CREATE FUNCTION add_usage(credentials text[], on_day date, added bigint[])
RETURNS TABLE (credential text, images bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO usage AS known (credential, day, images)
    SELECT one.credential, on_day, one.images FROM unnest(credentials, added) AS one (credential, images)
    ORDER BY one.credential
    ON CONFLICT (credential, day) DO UPDATE SET images = known.images + excluded.images
    RETURNING known.credential, known.images
$$;

REVOKE ALL ON FUNCTION find_api_key(text), add_usage(text[], date, bigint[]) FROM PUBLIC;
