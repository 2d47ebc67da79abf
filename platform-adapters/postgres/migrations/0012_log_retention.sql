-- What leaves the database when it is old (audit/retention.ts): batches, where they stand in the log, the lowest tiles of the tree, and what they
-- are searched by. No role may delete any of it. Three functions of the owner do, for the sequencing role, and hold by themselves that
-- nothing goes that is younger than three months by this server's clock, or that no checkpoint covers, or before what stands in front of it.

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

-- Takes the lowest batches that end below `boundary` out of the log, at most `at_most`; returns how many, 0 once there are no more. A batch whose events
-- nobody has taken stops it by its foreign key.
CREATE FUNCTION prune_log_batches(log integer, boundary bigint, at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  youngest timestamptz;
  last     bigint;
  taken    integer;
BEGIN
  IF at_most IS NULL OR boundary IS NULL OR boundary % 256 <> 0 OR boundary > coalesce((SELECT max(size) FROM log_checkpoints WHERE log_id = log), 0) THEN
    RAISE EXCEPTION 'only whole tiles under a checkpoint are taken out of the log';
  END IF;
  -- By the batch itself, whose time its writer signed, and by the row that the sequencer wrote.
  SELECT max(greatest(p.formed_at, b.formed_at)), max(p.first_index) INTO youngest, last
    FROM (SELECT * FROM log_batches WHERE log_id = log ORDER BY first_index LIMIT at_most) p LEFT JOIN batches b USING (writer, number)
   WHERE p.first_index + p.entry_count < boundary;
  IF youngest >= (now() AT TIME ZONE 'UTC' - interval '3 months') AT TIME ZONE 'UTC' THEN
    RAISE EXCEPTION 'entries of the last three months are not taken out of the log';
  END IF;
  DELETE FROM batches b USING log_batches p WHERE p.log_id = log AND p.first_index <= last AND b.writer = p.writer AND b.number = p.number;
  DELETE FROM log_batches WHERE log_id = log AND first_index <= last;
  GET DIAGNOSTICS taken = ROW_COUNT;
  RETURN taken;
END $$;

-- Removes what entries were found by that are not there any more, from `pages` pages of the two tables' files, beginning at `page`. They have no index
-- by entry, which every entry would pay for; so they are walked through, once a month. Returns whether there are further pages.
CREATE FUNCTION prune_log_search(log integer, page bigint, pages integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  lowest bigint := coalesce((SELECT min(first_index) FROM log_batches WHERE log_id = log), (SELECT size FROM logs WHERE log_id = log));
  first  tid := format('(%s,0)', page)::tid;
  after  tid := format('(%s,0)', page + pages)::tid;
BEGIN
  DELETE FROM log_tokens t WHERE t.ctid >= first AND t.ctid < after AND t.log_id = log AND t.entry < lowest;
  DELETE FROM log_facets f WHERE f.ctid >= first AND f.ctid < after AND f.log_id = log AND f.block < lowest / 256;
  RETURN (page + pages) * current_setting('block_size')::bigint < greatest(pg_relation_size('log_tokens'), pg_relation_size('log_facets'));
END $$;

-- Removes the lowest tiles of leaf hashes below `boundary`, at most `at_most`, where no batch ends below it any more; returns how many. Levels above stay: every
-- later entry, and every head of at least that size, is still proven by them.
CREATE FUNCTION prune_log_tiles(log integer, boundary bigint, at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  lowest bigint := (SELECT min(tile) FROM log_tiles WHERE log_id = log AND level = 0);
  taken  integer;
BEGIN
  IF at_most IS NULL OR boundary IS NULL OR boundary > coalesce((SELECT max(size) FROM log_checkpoints WHERE log_id = log), 0)
     OR (SELECT first_index + entry_count < boundary FROM log_batches WHERE log_id = log ORDER BY first_index LIMIT 1) THEN
    RAISE EXCEPTION 'only tiles whose entries were taken out of the log are removed';
  END IF;
  DELETE FROM log_tiles WHERE log_id = log AND level = 0 AND tile < least(lowest + at_most, boundary / 256);
  GET DIAGNOSTICS taken = ROW_COUNT;
  RETURN taken;
END $$;

REVOKE ALL ON FUNCTION prune_log_batches(integer, bigint, integer), prune_log_search(integer, bigint, integer), prune_log_tiles(integer, bigint, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_log_batches(integer, bigint, integer), prune_log_search(integer, bigint, integer), prune_log_tiles(integer, bigint, integer) TO {role:sequencer};

-- Which batches have events that nobody has taken: they stay until then. Never the events.
GRANT SELECT (writer, number) ON outbox TO {role:sequencer};
CREATE POLICY sequencer_outbox ON outbox FOR SELECT TO {role:sequencer} USING (true);
