-- Quotas count over several windows, by caller or for a whole tenant, and distinct tokens beside calls (vault/quota.ts).
-- What a process of before still counts by the minute stays in quota_usage, which is emptied as it was.

CREATE TABLE quota_counts (
  tenant_id      integer     NOT NULL,
  subject        text        COLLATE "C" NOT NULL,   -- what is counted, whose, and for which purpose
  window_seconds integer     NOT NULL,
  begins_at      timestamptz NOT NULL,
  used           bigint      NOT NULL,
  PRIMARY KEY (tenant_id, subject, window_seconds, begins_at)
);

-- The different tokens of a subject in one day of UTC. A row is a hash of subject and token: no list of who asked for what.
CREATE TABLE quota_tokens (
  tenant_id integer NOT NULL,
  day       date    NOT NULL,
  mark      bytea   NOT NULL,                        -- 16 bytes
  PRIMARY KEY (tenant_id, day, mark)
);

-- References that serve once: a hash of purpose, token and reference, for as long as the configuration says.
CREATE TABLE used_references (
  tenant_id integer     NOT NULL,
  mark      bytea       NOT NULL,                    -- 16 bytes
  used_at   timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, mark)
);
CREATE INDEX used_references_age ON used_references USING brin (used_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON quota_counts TO {role:detokenize};
GRANT SELECT, INSERT, DELETE ON quota_tokens, used_references TO {role:detokenize};
