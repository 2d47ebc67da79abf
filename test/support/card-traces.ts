/** Looks for card numbers and names where none may be: in answers, messages, tables, files. */
import { closeSync, openSync, readSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Client } from 'pg';
import { quoteIdentifier } from '../../platform-adapters/postgres/roles.ts';
import type { Appliance } from './appliance.ts';

/** A secret in one of the forms that it could be kept in. */
interface Needle {
  /** Place of the secret in the list, and the form: never the secret itself. */
  readonly name: string;
  readonly bytes: Buffer;
}

const chunkBytes = 8 * 1024 * 1024;

/** The forms looked for: as text, as UTF-16, as hex of the text in either case (so PostgreSQL shows bytea), and the digits packed two a byte. */
function needlesOf(secrets: readonly string[]): Needle[] {
  return secrets.flatMap((secret, index) => {
    const text = Buffer.from(secret, 'utf8');
    const forms: Needle[] = [
      { name: `${index} as text`, bytes: text },
      { name: `${index} as UTF-16`, bytes: Buffer.from(secret, 'utf16le') },
      { name: `${index} as hex`, bytes: Buffer.from(text.toString('hex'), 'latin1') },
    ];
    const upper = text.toString('hex').toUpperCase();
    if (upper !== text.toString('hex')) forms.push({ name: `${index} as hex`, bytes: Buffer.from(upper, 'latin1') });
    if (/^(\d\d){6,}$/u.test(secret)) forms.push({ name: `${index} packed`, bytes: Buffer.from(secret, 'hex') });
    return forms;
  });
}

function search(haystack: Buffer, needles: readonly Needle[]): string[] {
  return needles.filter(({ bytes }) => haystack.includes(bytes)).map(({ name }) => `secret ${name}`);
}

/** Which of the secrets stand in `haystack`. */
export function tracesIn(haystack: Buffer | string, secrets: readonly string[]): string[] {
  return search(Buffer.isBuffer(haystack) ? haystack : Buffer.from(haystack, 'utf8'), needlesOf(secrets));
}

/** Which of the secrets the files below `folder` hold, WAL and tables alike. */
export function tracesInFolder(folder: string, secrets: readonly string[]): string[] {
  const needles = needlesOf(secrets);
  const overlap = Math.max(...needles.map(({ bytes }) => bytes.length)) - 1;
  const buffer = Buffer.alloc(overlap + chunkBytes);
  const found = new Set<string>();
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    if ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) === 0) continue;
    const file = openSync(path, 'r');
    try {
      for (let at = 0, kept = 0; ; ) {
        const read = readSync(file, buffer, kept, chunkBytes, at);
        if (read === 0) break;
        at += read;
        for (const name of search(buffer.subarray(0, kept + read), needles)) found.add(`${name} in ${path}`);
        // The end of a piece is searched again with the next: a secret may lie across both.
        const filled = kept + read;
        kept = Math.min(overlap, filled);
        buffer.copyWithin(0, filled - kept, filled);
      }
    } finally {
      closeSync(file);
    }
  }
  return [...found];
}

/** Which of the secrets the rows of every table hold, each row as text. */
export async function tracesInDatabase(url: string, secrets: readonly string[]): Promise<string[]> {
  const needles = needlesOf(secrets);
  const found = new Set<string>();
  await readTables(url, (table, text) => {
    for (const name of search(Buffer.from(text, 'utf8'), needles)) found.add(`${name} in table ${table}`);
  });
  return [...found];
}

/** Calls `read` with every row of every table, as text. Resolves to the tables' names. */
export async function readTables(url: string, read: (table: string, text: string) => void): Promise<string[]> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    const tables = await client.query<{ name: string }>("SELECT relname AS name FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace ORDER BY 1");
    for (const { name } of tables.rows) {
      // A bundle of entries is bytes: shown as hex and as text.
      const { rows } = await client.query<{ row: string }>(`SELECT t::text AS row FROM public.${quoteIdentifier(name)} t`);
      for (const { row } of rows) {
        read(name, row);
        for (const [, hex = ''] of row.matchAll(/\\x([0-9a-f]{24,})/gu)) read(name, Buffer.from(hex, 'hex').toString('latin1'));
      }
    }
    return tables.rows.map(({ name }) => name);
  } finally {
    await client.end();
  }
}

/** Which of the secrets an appliance let out: in its answers (but those of `exempt` calls), on its standard streams, in its database. */
export async function tracesOf(appliance: Appliance, secrets: readonly string[], exempt: (call: string) => boolean = () => false): Promise<string[]> {
  const answers = appliance.transcript.filter(({ call }) => !exempt(call)).flatMap(({ call, bytes }) => tracesIn(bytes, secrets).map((name) => `${name} in the answer to ${call.split(' ')[0]}`));
  return [...answers, ...tracesIn(appliance.out, secrets).map((name) => `${name} on standard output`), ...tracesIn(appliance.err, secrets).map((name) => `${name} on standard error`), ...(await tracesInDatabase(appliance.databaseUrl, secrets))];
}
