// The key registry in PostgreSQL: the keyring's KeyStore, one function a statement.
import type { ClientBase, Pool } from 'pg';
import type { KeyLifecycleStore } from '../../hsm/key-lifecycle.ts';
import type { KeyKind, KeyRow, KeyState, KeyStore } from '../../hsm/key-registry.ts';

/** A Pool, or a Client that nothing else uses inside a transaction. */
type Queryable = Pool | ClientBase;

interface StoredKey {
  key_id: string; // bigint: pg gives text
  kind: KeyKind;
  domain: string;
  version: number;
  state: KeyState;
  material: Buffer;
  created_at: Date;
  row_version: string;
  mac: Buffer;
}

const columns = 'key_id, kind, domain, version, state, material, created_at, row_version, mac';

/**
 * The registry in the table `key_registry` (migration 0002). Each call is one statement in a transaction of its own, durable when it resolves unless
 * `synchronous_commit` is off, which the vault refuses at start. Rejects with pg's error: SQLSTATE 42501 where the role may not, class 08 and 57P0x where the
 * connection is lost (the statement may have been carried out; every one is safe to repeat).
 */
export function postgresKeyStore(db: Queryable): KeyStore {
  return {
    reserveKeyId: () => reserveKeyId(db),
    insertKey: (row) => insertKey(db, row),
    latestKey: (kind, domain) => selectLatestKey(db, kind, domain),
    keyById: (keyId) => selectKeyById(db, keyId),
    leaseSeals: (keyId, count, limit) => leaseSeals(db, keyId, count, limit),
  };
}

/** The registry for those who decide on keys, as the role `admin`; see `KeyLifecycleStore`. */
export function postgresKeyLifecycleStore(db: Queryable): KeyLifecycleStore {
  return {
    async listKeys() {
      const { rows } = await db.query<StoredKey & { leased_seals: string }>(`SELECT ${columns}, leased_seals FROM key_registry ORDER BY domain, kind, version`);
      return rows.map((stored) => ({ ...rowOf(stored)!, leasedSeals: Number(stored.leased_seals) }));
    },
    async replaceKey(row) {
      const { rowCount } = await db.query('UPDATE key_registry SET state = $2, material = $3, row_version = $4, mac = $5 WHERE key_id = $1 AND row_version = $4::bigint - 1', [row.keyId, row.state, row.material, row.rowVersion, row.mac]);
      return rowCount === 1;
    },
  };
}

// 2200H sequence_generator_limit_exceeded after 2^32 - 1 ids: the sequence does not cycle.
async function reserveKeyId(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ key_id: string }>(`SELECT nextval('key_ids') AS key_id`, []);
  return Number(rows[0]!.key_id);
}

async function insertKey(db: Queryable, row: KeyRow): Promise<boolean> {
  // Only (kind, domain, version) may be there already; 23505 on key_id would be a reused id and is thrown.
  const { rowCount } = await db.query(
    `INSERT INTO key_registry (${columns})
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     ON CONFLICT (kind, domain, version) DO NOTHING`,
    [row.keyId, row.kind, row.domain, row.version, row.state, row.material, row.createdAt.toISOString(), row.rowVersion, row.mac],
  );
  return rowCount === 1;
}

async function selectLatestKey(db: Queryable, kind: KeyKind, domain: string): Promise<KeyRow | null> {
  const { rows } = await db.query<StoredKey>(`SELECT ${columns} FROM key_registry WHERE kind = $1 AND domain = $2 ORDER BY version DESC LIMIT 1`, [kind, domain]);
  return rowOf(rows[0]);
}

async function selectKeyById(db: Queryable, keyId: number): Promise<KeyRow | null> {
  const { rows } = await db.query<StoredKey>(`SELECT ${columns} FROM key_registry WHERE key_id = $1`, [keyId]);
  return rowOf(rows[0]);
}

async function leaseSeals(db: Queryable, keyId: number, count: number, limit: number): Promise<number | null> {
  const { rows } = await db.query<{ leased_seals: string }>(
    `UPDATE key_registry
        SET leased_seals = leased_seals + $2::bigint
      WHERE key_id = $1 AND kind = 'data' AND state = 'active' AND leased_seals + $2::bigint <= $3::bigint
      RETURNING leased_seals`,
    [keyId, count, limit],
  );
  return rows[0] === undefined ? null : Number(rows[0].leased_seals);
}

function rowOf(stored: StoredKey | undefined): KeyRow | null {
  if (stored === undefined) return null;
  return {
    keyId: Number(stored.key_id),
    kind: stored.kind,
    domain: stored.domain,
    version: stored.version,
    state: stored.state,
    material: stored.material,
    createdAt: stored.created_at,
    rowVersion: Number(stored.row_version),
    mac: stored.mac,
  };
}
