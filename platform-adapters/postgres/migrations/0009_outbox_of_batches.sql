-- Events stand beside the batch that tells of their calls: nobody can leave some for a number that a writer has yet to reach, which would stop it there.
ALTER TABLE outbox ADD FOREIGN KEY (writer, number) REFERENCES batches (writer, number);
