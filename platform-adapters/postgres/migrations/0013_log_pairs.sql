-- Facets of two values that one entry has (audit/search-keys.ts): where a caller was refused, instead of where it called and somebody was refused.
-- They stand in log_facets beside the others. The entries paired_from to paired_to (exclusive) of a log have them all; what was appended before this
-- migration has none, and whoever appends writes paired_to in the same statement as size. So a sequencer that does not know them leaves paired_to
-- behind, and the next one that does begins a new range: none is read that is not whole.
ALTER TABLE logs ADD COLUMN paired_from bigint NOT NULL DEFAULT 0, ADD COLUMN paired_to bigint NOT NULL DEFAULT 0;
GRANT UPDATE (paired_from, paired_to) ON logs TO {role:sequencer};
