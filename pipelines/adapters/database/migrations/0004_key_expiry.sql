-- Serving processes learn when a key expires, so that it ends then though nobody answers them. It has a name of its own:
-- bentos that were built before call find_api_key, and go on doing so.
CREATE FUNCTION find_active_key(wanted text)
RETURNS TABLE (id text, role text, models text[], per_minute integer, per_day bigint, expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT id, role, models, per_minute, per_day, expires_at FROM api_keys
    WHERE digest = wanted::char(64) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
$$;

REVOKE ALL ON FUNCTION find_active_key(text) FROM PUBLIC;
