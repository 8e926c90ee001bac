-- Deployments, what each model should serve, and the history that nobody edits unnoticed.

CREATE TABLE deployments (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model          text NOT NULL,
    version        integer NOT NULL,
    package_digest text NOT NULL,
    bento_digest   text NOT NULL,
    bento_key      text NOT NULL,
    spec           jsonb NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('deploy', 'promote', 'rollback')),
    origin         bigint NOT NULL,
    state          text NOT NULL DEFAULT 'requested'
                   CHECK (state IN ('requested', 'starting', 'live', 'retired', 'failed')),
    reason         text NOT NULL DEFAULT '',
    requested_at   timestamptz NOT NULL DEFAULT now(),
    live_at        timestamptz,
    ended_at       timestamptz
);
CREATE INDEX deployments_by_model ON deployments (model, id DESC);
CREATE UNIQUE INDEX one_live_deployment ON deployments (model) WHERE state = 'live';

-- A deployment is its own origin unless it returns to an earlier one.
CREATE FUNCTION own_origin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.origin := coalesce(NEW.origin, NEW.id);
    RETURN NEW;
END $$;
CREATE TRIGGER own_origin BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION own_origin();

CREATE TABLE models (
    model      text PRIMARY KEY,
    desired    bigint REFERENCES deployments (id),
    live       bigint REFERENCES deployments (id),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- `at` is text and `detail` json: the hash covers characters, which timestamptz and jsonb would not give back alike.
CREATE TABLE history (
    seq           bigint PRIMARY KEY,
    at            text NOT NULL,
    model         text NOT NULL,
    deployment_id bigint REFERENCES deployments (id),
    event         text NOT NULL,
    detail        json NOT NULL,
    previous_hash char(64) NOT NULL,
    hash          char(64) NOT NULL UNIQUE
);

CREATE FUNCTION history_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'history is append-only: % refused', TG_OP;
END $$;
CREATE TRIGGER history_rows BEFORE UPDATE OR DELETE ON history
    FOR EACH ROW EXECUTE FUNCTION history_is_append_only();
CREATE TRIGGER history_table BEFORE TRUNCATE ON history
    FOR EACH STATEMENT EXECUTE FUNCTION history_is_append_only();
