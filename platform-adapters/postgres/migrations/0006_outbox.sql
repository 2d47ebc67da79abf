-- Events for the rest of the platform, written in the transaction that makes them true (transactional outbox): one row a group commit.
-- A writer commits its rows one after the other, so whoever has read a writer up to a number has missed nothing below it, which
-- a sequence over all writers could not promise.

CREATE TABLE outbox (
  writer  bigint      NOT NULL,
  number  bigint      NOT NULL,                      -- of the batch whose entries tell of the same calls; not every batch has events
  made_at timestamptz NOT NULL,
  events  json        NOT NULL,                      -- vault/outbox.ts: never a card number, a name or a fingerprint
  PRIMARY KEY (writer, number)
);
ALTER TABLE outbox ALTER COLUMN events SET STORAGE EXTERNAL;

GRANT INSERT ON outbox TO {role:tokenize}, {role:detokenize}, {role:admin};
GRANT SELECT, DELETE ON outbox TO {role:relay};

-- As in the log, a role speaks for its own writers only.
ALTER TABLE outbox ENABLE ROW LEVEL SECURITY;
CREATE POLICY relay_outbox ON outbox TO {role:relay} USING (true);
CREATE POLICY tokenize_outbox ON outbox FOR INSERT TO {role:tokenize} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = outbox.writer AND w.role = 'tokenize'));
CREATE POLICY detokenize_outbox ON outbox FOR INSERT TO {role:detokenize} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = outbox.writer AND w.role = 'detokenize'));
CREATE POLICY admin_outbox ON outbox FOR INSERT TO {role:admin} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = outbox.writer AND w.role = 'admin'));
