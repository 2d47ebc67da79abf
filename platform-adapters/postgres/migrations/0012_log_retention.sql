-- What leaves the database when it is old (audit/retention.ts): batches, where they stand in the log, the lowest tiles of the tree, and what they
-- are searched by. No role may delete any of it. Three functions of the owner do, for the sequencing role, and hold by themselves that
-- nothing goes that is younger than three months by this server's clock, or that no checkpoint covers, or before what stands in front of it.

-- How far that has come. Without a row, the log is whole.
CREATE TABLE log_pruned (
  log_id       integer PRIMARY KEY REFERENCES logs (log_id),
  entries_from bigint  NOT NULL,                       -- the first batch that was not taken out begins here
  tiles_from   bigint  NOT NULL                        -- lowest tile of leaf hashes that was not removed
);
GRANT SELECT ON log_pruned TO {role:sequencer}, {role:admin};

-- A DELETE that reaches `batches` from such a function: the session is the sequencing role's, and runs as the tables' owner. Nobody else can be both.
CREATE FUNCTION refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = session_user AND oid = '{role:sequencer}'::regrole::oid) OR current_user = session_user THEN
    RAISE EXCEPTION 'the log is append only';
  END IF;
  RETURN NULL;
END $$;
DROP TRIGGER batches_append_only ON batches;
CREATE TRIGGER batches_append_only BEFORE UPDATE OR TRUNCATE ON batches FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER batches_delete_old_only BEFORE DELETE ON batches FOR EACH STATEMENT EXECUTE FUNCTION refuse_delete();

-- Takes the lowest batches that end below `boundary` out of the log, at most `at_most`; returns how many it went through, 0 once there are no more. The last batch of
-- a chain that more may come of stays, with its place, until the chain has gone on: by it the sequencer makes sure where the chain stands. A batch
-- whose events nobody has taken stops everything by its foreign key.
CREATE FUNCTION prune_log_batches(log integer, boundary bigint, at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  too_young timestamptz := (now() AT TIME ZONE 'UTC' - interval '3 months') AT TIME ZONE 'UTC';
  from_here bigint := coalesce((SELECT entries_from FROM log_pruned WHERE log_id = log), 0);
  youngest  timestamptz;
  next_from bigint;
  passed    integer;
BEGIN
  IF at_most IS NULL OR boundary IS NULL OR boundary % 256 <> 0 OR boundary > coalesce((SELECT max(size) FROM log_checkpoints WHERE log_id = log), 0) THEN
    RAISE EXCEPTION 'only whole tiles under a checkpoint are taken out of the log';
  END IF;
  -- By the batch itself, whose time its writer signed, and by the row that the sequencer wrote.
  SELECT max(greatest(p.formed_at, b.formed_at)), max(p.first_index + p.entry_count + 1), count(*) INTO youngest, next_from, passed
    FROM (SELECT * FROM log_batches WHERE log_id = log AND first_index >= from_here ORDER BY first_index LIMIT at_most) p LEFT JOIN batches b USING (writer, number)
   WHERE p.first_index + p.entry_count < boundary;
  IF youngest >= too_young THEN
    RAISE EXCEPTION 'entries of the last three months are not taken out of the log';
  END IF;
  IF passed > 0 THEN
    INSERT INTO log_pruned (log_id, entries_from, tiles_from) VALUES (log, next_from, 0) ON CONFLICT (log_id) DO UPDATE SET entries_from = excluded.entries_from;
  END IF;
  -- In the end those that stayed earlier too, where they are no longer the last. Not before: what was deleted just now would be walked over each time.
  WITH gone AS (
    DELETE FROM log_batches p
     WHERE p.log_id = log AND p.first_index >= CASE WHEN passed > 0 THEN from_here ELSE 0 END AND p.first_index < coalesce(next_from, from_here) AND p.formed_at < too_young
       AND NOT EXISTS (SELECT 1 FROM batches y WHERE y.writer = p.writer AND y.number = p.number AND y.formed_at >= too_young)
       AND NOT EXISTS (SELECT 1 FROM log_chains c WHERE c.writer = p.writer AND c.next = p.number + 1 AND c.state IN (0, 2))
    RETURNING p.writer, p.number
  )
  DELETE FROM batches b USING gone WHERE b.writer = gone.writer AND b.number = gone.number;
  RETURN passed;
END $$;

-- Removes what entries were found by that are not there any more, from `pages` pages of the two tables' files, beginning at `page`. They have no index
-- by entry, which every entry would pay for; so they are walked through, once a month. Returns whether there are further pages.
CREATE FUNCTION prune_log_search(log integer, page bigint, pages integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  lowest   bigint := coalesce((SELECT entries_from FROM log_pruned WHERE log_id = log), 0);
  this_one tid := format('(%s,0)', page)::tid;
  next_one tid := format('(%s,0)', page + pages)::tid;
BEGIN
  DELETE FROM log_tokens t WHERE t.ctid >= this_one AND t.ctid < next_one AND t.log_id = log AND t.entry < lowest;
  DELETE FROM log_facets f WHERE f.ctid >= this_one AND f.ctid < next_one AND f.log_id = log AND f.block < lowest / 256;
  RETURN (page + pages) * current_setting('block_size')::bigint < greatest(pg_relation_size('log_tokens'), pg_relation_size('log_facets'));
END $$;

-- Removes the lowest tiles of leaf hashes below `boundary`, at most `at_most`, where no batch ends below it any more; returns how many it went through. Those that
-- a batch begins in stay as long as it does. Levels above stay: every later entry, and every head of at least that size, is still proven by them.
CREATE FUNCTION prune_log_tiles(log integer, boundary bigint, at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  pruned    log_pruned;
  next_from bigint;
BEGIN
  SELECT * INTO pruned FROM log_pruned WHERE log_id = log;
  IF pruned IS NULL OR at_most IS NULL OR boundary IS NULL OR boundary % 256 <> 0 OR boundary > coalesce((SELECT max(size) FROM log_checkpoints WHERE log_id = log), 0)
     OR (SELECT first_index + entry_count < boundary FROM log_batches WHERE log_id = log AND first_index >= pruned.entries_from ORDER BY first_index LIMIT 1) THEN
    RAISE EXCEPTION 'only tiles whose entries were taken out of the log are removed';
  END IF;
  next_from := greatest(pruned.tiles_from, least(pruned.tiles_from + at_most, boundary / 256));
  -- In the end those that stayed earlier too.
  DELETE FROM log_tiles t
   WHERE t.log_id = log AND t.level = 0 AND t.tile >= CASE WHEN next_from > pruned.tiles_from THEN pruned.tiles_from ELSE 0 END AND t.tile < next_from
     AND NOT EXISTS (SELECT 1 FROM log_batches p WHERE p.log_id = log AND p.first_index BETWEEN t.tile * 256 AND t.tile * 256 + 255);
  UPDATE log_pruned SET tiles_from = next_from WHERE log_id = log;
  RETURN next_from - pruned.tiles_from;
END $$;

REVOKE ALL ON FUNCTION prune_log_batches(integer, bigint, integer), prune_log_search(integer, bigint, integer), prune_log_tiles(integer, bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_log_batches(integer, bigint, integer), prune_log_search(integer, bigint, integer), prune_log_tiles(integer, bigint, integer) TO {role:sequencer};

-- Which batches have events that nobody has taken: they stay until then. Never the events.
GRANT SELECT (writer, number) ON outbox TO {role:sequencer};
CREATE POLICY sequencer_outbox ON outbox FOR SELECT TO {role:sequencer} USING (true);
