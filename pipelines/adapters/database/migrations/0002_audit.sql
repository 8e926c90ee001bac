-- Who did it. Rows from before have no actor, and their hashes hold without one; every row from now on has one.

ALTER TABLE history ADD COLUMN actor text NOT NULL DEFAULT '';
ALTER TABLE history ADD CONSTRAINT history_names_its_actor CHECK (actor <> '') NOT VALID;
CREATE INDEX history_by_model ON history (model, event, seq);

ALTER TABLE deployments ADD COLUMN actor text NOT NULL DEFAULT '';
