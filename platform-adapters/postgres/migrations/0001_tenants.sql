-- Who owns cards and tokens. The short number stands for the name in the keys of the hot tables; what is sealed, fingerprinted or
-- MACed binds the name, so that swapping two numbers here is caught when a row is used.
CREATE TABLE tenants (
  tenant_id  integer     PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  name       text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
  key_domain text        NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT ON tenants TO {role:tokenize}, {role:detokenize}, {role:sequencer}, {role:relay}, {role:admin};
GRANT INSERT (name, key_domain) ON tenants TO {role:admin};
