-- A role writes its own chains only: a stolen tokenizing host must not take the numbers of the detokenizing writer's batches, which
-- would stop it for good. The owner of the tables is not bound by this.
ALTER TABLE writers ENABLE ROW LEVEL SECURITY;
ALTER TABLE batches ENABLE ROW LEVEL SECURITY;

CREATE POLICY read_writers ON writers FOR SELECT USING (true);
CREATE POLICY read_batches ON batches FOR SELECT USING (true);

CREATE POLICY tokenize_writers ON writers FOR INSERT TO {role:tokenize} WITH CHECK (role = 'tokenize');
CREATE POLICY detokenize_writers ON writers FOR INSERT TO {role:detokenize} WITH CHECK (role = 'detokenize');
CREATE POLICY admin_writers ON writers FOR INSERT TO {role:admin} WITH CHECK (role = 'admin');

CREATE POLICY tokenize_batches ON batches FOR INSERT TO {role:tokenize} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = batches.writer AND w.role = 'tokenize'));
CREATE POLICY detokenize_batches ON batches FOR INSERT TO {role:detokenize} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = batches.writer AND w.role = 'detokenize'));
CREATE POLICY admin_batches ON batches FOR INSERT TO {role:admin} WITH CHECK (EXISTS (SELECT 1 FROM writers w WHERE w.writer = batches.writer AND w.role = 'admin'));
