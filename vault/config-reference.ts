/** `docs/configuration.md`, made from the schema that validates the file, so that the two cannot part. Pure. */
import type { TSchema } from 'typebox';
import { ConfigSchema } from './config.ts';

interface Described {
  readonly properties?: Record<string, TSchema>;
  readonly description?: string;
  readonly default?: unknown;
  readonly enum?: readonly string[];
  readonly minimum?: number;
  readonly maximum?: number;
}

/** Markdown: every key with its default and meaning, and a ceremony file for `cofre init`. */
export function configurationReference(): string {
  return `# Configuration

\`cofre.config.yaml\` in the home, or \`--config FILE\`. Every key has a default, which is right for development. Paths are relative to the home; times have a unit (\`ms\`, \`s\`, \`m\`, \`h\`, \`d\`). An unknown key, a wrong unit or a file that is missing stops the start with one line.
\`profile: production\` refuses the defaults that are for development only. Made by \`npx cofre config --reference\`; \`npx cofre config\` prints what is in force.

| key | default | meaning |
|---|---|---|
${rows(ConfigSchema, '').join('\n')}

From the environment: \`COFRE_HOME\`, \`COFRE_API_PORT\`, \`COFRE_ADMIN_PORT\`, \`COFRE_TELEMETRY_PORT\`, and \`DATABASE_URL\` (a PostgreSQL of yours, 15 or newer, as a user that owns the database and may create roles; it holds a password, so it stands in no file of ours).

## Ceremony file of \`cofre init\`

\`\`\`yaml
ceremony: cofre/v1
purpose: production
token: { module: /opt/cloudhsm/lib/libcloudhsm_pkcs11.so, label: cofre, initialize: false }
domains: [acme, globex]        # one AES-256 domain key each
keys: { domain: aes-256, control: hmac-sha-256, log_signing: ecdsa-p256, evidence_signing: ecdsa-p256 }
witnesses: [Ana Souza, Rui Lima]
\`\`\`
`;
}

function rows(schema: TSchema, at: string): string[] {
  const { properties } = schema as Described;
  return Object.entries(properties ?? {}).flatMap(([key, member]) => {
    const path = at === '' ? key : `${at}.${key}`;
    const described = member as Described;
    if (described.properties !== undefined) return rows(member, path);
    const range = described.minimum === undefined ? '' : ` ${described.minimum} to ${described.maximum ?? ''}.`;
    const choice = described.enum === undefined ? '' : ` One of ${described.enum.map((value) => `\`${value}\``).join(', ')}.`;
    return [`| \`${path}\` | ${defaultText(described.default)} | ${described.description ?? ''}${choice}${range} |`];
  });
}

function defaultText(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return `\`${text.length > 120 ? `${text.slice(0, 117)}…` : text}\``;
}
