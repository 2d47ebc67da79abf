-- Every set of policies that was ever in force, by the digest that the log names it by: whoever keeps the log can say who might do what at a past
-- moment. What is changed here no longer has its digest; what is deleted is missed.

CREATE TABLE policy_sets (
  digest    bytea       PRIMARY KEY,                 -- SHA-256, 32 bytes
  files     jsonb       NOT NULL,                    -- [name, text] of each file, in the order of the digest
  kept_at   timestamptz NOT NULL
);

GRANT SELECT (digest), INSERT ON policy_sets TO {role:tokenize}, {role:detokenize};
GRANT SELECT, INSERT ON policy_sets TO {role:admin};
