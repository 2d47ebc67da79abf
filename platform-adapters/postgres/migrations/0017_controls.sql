-- What binds callers and people beside the policies, and outlives a restart: suspensions, honey tokens, operators, changes that two people decide on (vault/controls.ts). Rows
-- are only added. Each holds the hash of all before it, and an HMAC of that by the HSM's control key: what somebody edits, adds or takes out here is not believed.

CREATE TABLE controls (
  number    bigint      PRIMARY KEY,                     -- from 1, without gaps
  made_at   timestamptz NOT NULL,
  kind      text        COLLATE "C" NOT NULL CHECK (kind IN ('suspension', 'honey_token', 'operator', 'change', 'approval')),
  subject   text        COLLATE "C" NOT NULL,            -- a caller; an operator; the hash of a tenant and a token; a change's id; what was approved
  state     text        COLLATE "C" NOT NULL,
  made_by   text        NOT NULL,                        -- who or what: a caller, `abuse.<kind>`
  data      text        NOT NULL CHECK (octet_length(data) <= 65536), -- JSON; '' where the rest says all
  data_hash bytea       NOT NULL CHECK (octet_length(data_hash) = 32),
  hash      bytea       NOT NULL CHECK (octet_length(hash) = 32),
  mac       bytea       NOT NULL CHECK (octet_length(mac) = 32)
);

-- A serving process suspends, and knows whom it may not serve. What operators are known by is none of its business. Only the admin listener lifts, makes decoys, and knows people.
GRANT SELECT (number, made_at, kind, subject, state, made_by, data_hash, hash, mac), INSERT ON controls TO {role:tokenize}, {role:detokenize};
GRANT SELECT, INSERT ON controls TO {role:admin};
ALTER TABLE controls ENABLE ROW LEVEL SECURITY;
CREATE POLICY read_controls ON controls FOR SELECT USING (true);
CREATE POLICY serving_controls ON controls FOR INSERT TO {role:tokenize}, {role:detokenize} WITH CHECK (kind = 'suspension' AND state = 'on' AND data = '');
CREATE POLICY admin_controls ON controls FOR INSERT TO {role:admin} WITH CHECK (true);

-- How many tokens a caller asked to open in each hour: its own history, against which an unusual hour stands out.
CREATE TABLE caller_hours (
  caller text        COLLATE "C" NOT NULL,
  hour   timestamptz NOT NULL,
  asked  bigint      NOT NULL,
  PRIMARY KEY (caller, hour)
);
GRANT SELECT, INSERT, UPDATE, DELETE ON caller_hours TO {role:detokenize};

-- What changes with each try to log in. Not authenticated: who edits it here can end a lockout, or let a code of the last minute serve twice, and needs the person's certificate and password as well.
CREATE TABLE operator_logins (
  operator     text        COLLATE "C" PRIMARY KEY,      -- SPIFFE id
  last_step    bigint      NOT NULL DEFAULT 0,           -- RFC 6238: of the last code that was accepted
  failures     integer     NOT NULL DEFAULT 0,           -- since the last login
  locked_until timestamptz
);

-- Sessions that are open. A session's token carries its own MAC (vault/operator-sessions.ts): a row alone opens nothing, its absence ends one.
CREATE TABLE operator_sessions (
  id         bytea       PRIMARY KEY,                    -- 16 bytes
  operator   text        COLLATE "C" NOT NULL,
  used_at    timestamptz NOT NULL,
  expires_at timestamptz NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON operator_logins, operator_sessions TO {role:admin};
