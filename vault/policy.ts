import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

import * as cedar from '@cedar-policy/cedar-wasm/nodejs';

import type { Caller } from './caller.ts';

export const actions = ['tokenize', 'tokenize_batch', 'detokenize', 'detokenize_batch', 'validate', 'metadata', 'lifecycle', 'import', 'administer', 'audit_read', 'approve', 'custody'] as const;
export type Action = (typeof actions)[number];

export const purposes = ['authorization', 'capture', 'refund', 'chargeback'] as const;
export type Purpose = (typeof purposes)[number];

export interface Decision {
  readonly allowed: boolean;
  /** The policies that decided, by their @id: the permits of an allowed call, the forbids of a refused one; none where nothing permits it. */
  readonly policyIds: readonly string[];
}

/** The files of a set by their names: the schema and every `*.cedar`, in the order that its digest has. */
export type PolicyFiles = ReadonlyMap<string, string>;

/** Who may do what, for which purpose. Denies by default. */
export interface Policy {
  /**
   * Decides on one call. Synchronous, without I/O. `purpose` is needed by detokenize and detokenize_batch, which are refused without one, and
   * ignored by the rest. `tenant` is whose cards are meant: the caller's own unless given. Never throws: a failed evaluation is a refusal.
   */
  decide(caller: Caller, action: Action, purpose: Purpose | null, tenant?: string): Decision;
  /** SHA-256 in hex over the schema and policies in force: what a log entry names the set by. */
  readonly digest: string;
  /** The @id of every policy in force, sorted. */
  readonly policyIds: readonly string[];
  /** The set in force, as it was read. */
  readonly files: PolicyFiles;
  /**
   * Reads the directory again. The new set is taken whole, or where anything is wrong with it the old one stays in force.
   *
   * @returns null, or why the new set was refused: one finding a line, with file and line. Calls are made one after the other.
   */
  reload(): Promise<string | null>;
}

export interface PolicyOptions {
  /** Told of an evaluation that failed, which a valid set makes all but impossible. The text names policies, never the caller's input. */
  readonly report?: (finding: string) => void;
  /** Decisions kept at most; about 300 bytes each. */
  readonly maxMemo?: number;
  /** Why a valid set may still not be in force, by its digest; null where it may. Asked at each reload. Must not throw. */
  readonly refusal?: (digest: string) => Promise<string | null>;
}

/** The set that the directory holds cannot be taken. The message has one finding a line, each with its file and line. */
export class PolicySetError extends Error {
  override readonly name = 'PolicySetError';
}

const schemaFile = 'vault.cedarschema';
/** Actions that take cards out, run the vault, read its log or lift a cap: each needs a permit that names who may. */
const named: readonly Action[] = ['detokenize', 'detokenize_batch', 'import', 'administer', 'audit_read', 'approve', 'custody'];
/** Those that a schema of before may lack: nobody may do them then. */
const later: ReadonlySet<Action> = new Set<Action>(['approve', 'custody']);
const denied: Decision = { allowed: false, policyIds: [] };

/**
 * Loads the policies (`*.cedar`) and the schema (`vault.cedarschema`) of a directory. Refuses the set on any error or warning of Cedar's strict
 * validation, on a schema that lacks one of our actions or purposes, on a template, on a policy without an @id of its own, on a set without policies, on one that gives an action of `named` to a caller that nobody has heard of, and on one under which nobody could administer the vault.
 *
 * @throws PolicySetError with every finding.
 */
export async function loadPolicy(directory: string, options: PolicyOptions = {}): Promise<Policy> {
  const { report = () => {}, maxMemo = 10_000, refusal = () => Promise.resolve(null) } = options;
  let inForce = await checkSet(await readPolicyFiles(directory), directory);
  let memo = new Map<string, Decision>();
  let pending: Promise<unknown> = Promise.resolve();

  return {
    get digest() {
      return inForce.digest;
    },
    get policyIds() {
      return inForce.policyIds;
    },
    get files() {
      return inForce.files;
    },
    decide(caller, action, purpose, tenant = caller.tenant) {
      const asked = needsPurpose(action) ? purpose : null;
      // NUL stands in no label and no id of a caller, so that no two inputs share a key.
      const key = `${action}\0${asked ?? ''}\0${tenant}\0${caller.tenant}\0${caller.service}\0${caller.spiffeId}`;
      const kept = memo.get(key);
      if (kept !== undefined) return kept;
      const decision = evaluate(inForce.handle, caller, action, asked, tenant, report);
      // First in, first out: callers and purposes are few, so the bound is a guard and not a working set.
      if (memo.size >= maxMemo) for (const oldest of memo.keys()) { memo.delete(oldest); break; }
      memo.set(key, decision);
      return decision;
    },
    reload() {
      const next = pending.then(async () => {
        try {
          const read = await checkSet(await readPolicyFiles(directory), directory);
          const refused = await refusal(read.digest);
          if (refused !== null) {
            release(read.handle);
            return refused;
          }
          const old = inForce;
          // Both at once, with no turn of the event loop between: no decision of the old set outlives it.
          inForce = read;
          memo = new Map();
          release(old.handle);
          return null;
        } catch (error) {
          return error instanceof PolicySetError ? error.message : `the policy directory cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`;
        }
      });
      pending = next;
      return next;
    },
  };
}

interface PolicySet {
  /** The name under which Cedar keeps the parsed set and schema. */
  readonly handle: string;
  readonly digest: string;
  readonly policyIds: readonly string[];
  readonly files: PolicyFiles;
}

interface SourcePolicy {
  readonly id: string;
  readonly text: string;
  /** File and line. */
  readonly where: string;
  /** A permit whose scope names its one principal, so that it can never apply to another. */
  readonly closed: boolean;
}

let handles = 0;
/** What each prepared set's schema declares of `later`. */
const declaredLater = new Map<string, ReadonlySet<string>>();

/** Reads the schema and the policies of a directory, and looks at nothing else there. @throws PolicySetError if one cannot be read. */
export async function readPolicyFiles(directory: string): Promise<PolicyFiles> {
  const names = (await readdir(directory)).filter((name) => name.endsWith('.cedar')).sort();
  const read = (name: string): Promise<string> =>
    readFile(join(directory, name), 'utf8').catch((error: NodeJS.ErrnoException) => {
      throw new PolicySetError(`${name}: ${error.code === 'ENOENT' ? 'is missing' : `cannot be read (${error.code ?? 'unknown'})`}`);
    });
  const files = new Map<string, string>();
  for (const name of [schemaFile, ...names]) files.set(name, await read(name));
  return files;
}

/** SHA-256 in hex over the files, each with its name and length before it. */
export function digestOfPolicies(files: PolicyFiles): string {
  const hash = createHash('sha256');
  for (const [name, text] of files) hash.update(`${name}\0${Buffer.byteLength(text)}\0${text}`);
  return hash.digest('hex');
}

/** A set that was read before, by itself: it is not reloaded, and remembers no decision. @throws PolicySetError as `loadPolicy`. */
export async function openPolicySet(files: PolicyFiles, where: string): Promise<Pick<Policy, 'decide' | 'digest' | 'policyIds' | 'files'>> {
  const { handle, ...set } = await checkSet(files, where);
  return { ...set, decide: (caller, action, purpose, tenant = caller.tenant) => evaluate(handle, caller, action, needsPurpose(action) ? purpose : null, tenant, () => undefined) };
}

async function checkSet(files: PolicyFiles, directory: string): Promise<PolicySet> {
  const schema = files.get(schemaFile) ?? '';
  const parsedSchema = cedar.checkParseSchema(schema);
  if (parsedSchema.type === 'failure') throw new PolicySetError(parsedSchema.errors.map((error) => finding(schemaFile, schema, error)).join('\n'));

  const findings: string[] = schemaGaps(schema).map((gap) => `${schemaFile}: ${gap}`);
  const policies = new Map<string, SourcePolicy>();
  for (const [name, text] of files) {
    if (name === schemaFile) continue;
    const earlierFindings = findings.length;
    const inFile = readFileOfPolicies(name, text, schema, findings);
    // A file that was cut to nothing would take its forbids with it, without a word.
    if (inFile.length === 0 && findings.length === earlierFindings) findings.push(`${name}: holds no policy`);
    for (const policy of inFile) {
      const earlier = policies.get(policy.id);
      if (earlier === undefined) policies.set(policy.id, policy);
      else findings.push(`${policy.where}: the @id "${policy.id}" is used before, in ${earlier.where}`);
    }
  }
  if (files.size === 1) findings.push(`${directory}: holds no *.cedar file`);
  if (findings.length > 0) throw new PolicySetError(findings.join('\n'));

  const open = [...policies.values()].filter(({ closed }) => !closed);
  const probe = prepare(schema, open);
  findings.push(...(await grantsToAnyone(probe, new Map(open.map((policy) => [policy.id, policy])))));
  release(probe);
  if (findings.length > 0) throw new PolicySetError(findings.join('\n'));
  const handle = prepare(schema, [...policies.values()]);
  if (!letsSomebodyIn(handle, [...policies.values()])) {
    release(handle);
    throw new PolicySetError(`${directory}: nobody whom a policy names may administer the vault: with these policies in force all operators would be locked out`);
  }
  return { handle, digest: digestOfPolicies(files), policyIds: [...policies.keys()].sort(), files };
}

/** Whether a caller that some policy names may administer the vault, in a tenant of its own. */
function letsSomebodyIn(handle: string, policies: readonly SourcePolicy[]): boolean {
  return policies.flatMap(({ text }) => callersNamedIn(text)).some((caller) => evaluate(handle, caller, 'administer', null, caller.tenant, () => undefined).allowed);
}

/** The callers whose SPIFFE ids stand in a text of policies, to ask a set about: with a serial of nobody's. */
export function callersNamedIn(text: string): Caller[] {
  return [...text.matchAll(/"(spiffe:\/\/[a-z0-9.-]+\/tenant\/([a-z0-9-]+)\/service\/([a-z0-9-]+))"/g)].map(([, spiffeId, tenant, service]) => ({ spiffeId: spiffeId!, tenant: tenant!, service: service!, serial: '1', notAfter: new Date(0) }));
}

/** Where a schema, perhaps of an older vault, does not know what this vault asks: each such call would be refused one by one. */
function schemaGaps(schema: string): readonly string[] {
  const parsed = cedar.schemaToJson(schema);
  const namespace = parsed.type === 'success' ? parsed.json['Cofre'] : undefined;
  if (namespace === undefined) return ['has no namespace Cofre'];
  const purpose = namespace.entityTypes['Purpose'];
  const declared = purpose !== undefined && 'enum' in purpose ? purpose.enum : [];
  return [
    ...actions.filter((action) => !later.has(action) && !Object.hasOwn(namespace.actions, action)).map((action) => `has no action ${action}`),
    ...purposes.filter((name) => !declared.includes(name)).map((name) => `has no purpose ${name}`),
  ];
}

/** Has Cedar parse and keep a set whose files it has accepted. Returns the name to ask it by. */
function prepare(schema: string, policies: readonly SourcePolicy[]): string {
  const handle = `cofre-${(handles += 1)}`;
  const answers = [cedar.preparseSchema(handle, schema), cedar.preparsePolicySet(handle, { staticPolicies: Object.fromEntries(policies.map(({ id, text }) => [id, text])) })];
  for (const answer of answers) if (answer.type === 'failure') throw new PolicySetError(answer.errors.map(({ message }) => message).join('\n'));
  const parsed = cedar.schemaToJson(schema);
  const declared = parsed.type === 'success' ? (parsed.json['Cofre']?.actions ?? {}) : {};
  declaredLater.set(handle, new Set([...later].filter((action) => Object.hasOwn(declared, action))));
  return handle;
}

/** The policies of one file in their order, after everything wrong with the file was added to `findings`. */
function readFileOfPolicies(name: string, text: string, schema: string, findings: string[]): readonly SourcePolicy[] {
  const parts = cedar.policySetTextToParts(text);
  if (parts.type === 'failure') {
    findings.push(...parts.errors.map((error) => finding(name, text, error)));
    return [];
  }
  if (parts.policy_templates.length > 0) findings.push(`${name}: holds a template, which nothing here links`);
  const validated = cedar.validate({ schema, policies: { staticPolicies: text }, validationSettings: { mode: 'strict' } });
  if (validated.type === 'failure') {
    findings.push(...validated.errors.map((error) => finding(name, text, error)));
    return [];
  }
  const wrong = [...validated.validationErrors.map(({ error }) => error), ...validated.validationWarnings.map(({ error }) => error), ...validated.otherWarnings];
  findings.push(...wrong.map((error) => finding(name, text, error)));

  // Cedar returns the policies sorted by the name it gave them, policy0, policy1, policy10, …: put them back in the order of the file.
  const order = parts.policies.map((_, index) => index).sort((a, b) => (`policy${a}` < `policy${b}` ? -1 : 1));
  const inOrder = order.map((place, index) => ({ place, policy: parts.policies[index] ?? '' })).sort((a, b) => a.place - b.place);
  const policies: SourcePolicy[] = [];
  let from = 0;
  for (const { policy } of inOrder) {
    const start = Math.max(from, text.indexOf(policy, from));
    from = start + policy.length;
    const where = `${name}:${lineOf(text, Buffer.byteLength(text.slice(0, start)))}`;
    const parsed = cedar.policyToJson(policy);
    const json = parsed.type === 'success' ? parsed.json : null;
    const id = json?.annotations?.['id'];
    if (json === null || id === undefined || id === null) findings.push(`${where}: the policy has no @id`);
    else if (!/^[a-z0-9][a-z0-9-]{0,62}$/.test(id)) findings.push(`${where}: the @id is not 1 to 63 lower-case letters, digits and hyphens`);
    else policies.push({ id, text: policy, where, closed: json.effect === 'permit' && json.principal.op === '==' });
  }
  return policies;
}

/**
 * Asks the set itself, rather than its text, whether it opens the vault to anyone: a service that cannot exist, in a tenant that cannot exist
 * and in every tenant that the policies speak of, for every action of `named` and every purpose. A conclusion from the text would miss
 * `when { true }`, `principal != …` and `principal.tenant == "acme"`. A guard against mistakes, not a proof: whoever may write policies can name anyone.
 * `policies` leaves out what can only apply to one caller, whom it names; with a thousand services that is nearly all of them.
 */
async function grantsToAnyone(handle: string, policies: ReadonlyMap<string, SourcePolicy>): Promise<readonly string[]> {
  const tenants = new Set(['nobody-has-this-tenant']);
  for (const { text } of policies.values()) {
    for (const [literal] of text.matchAll(/"[^"\\]*"/g)) {
      // A pattern of `like` speaks of the tenants that fit it: one of them is enough.
      const content = literal.slice(1, -1).replaceAll('*', 'a');
      const tenant = /\/tenant\/([a-z0-9-]+)/.exec(content)?.[1] ?? (/^[a-z0-9-]{1,63}$/.test(content) ? content : undefined);
      if (tenant !== undefined) tenants.add(tenant);
    }
  }
  const findings = new Set<string>();
  for (const tenant of tenants) {
    // A set of a thousand policies takes a while: requests go on between two tenants.
    await new Promise((resolve) => setImmediate(resolve));
    const stranger: Caller = { spiffeId: `spiffe://nobody.invalid/tenant/${tenant}/service/nobody-has-this-service`, tenant, service: 'nobody-has-this-service', serial: '1', notAfter: new Date(0) };
    for (const action of named) {
      for (const purpose of needsPurpose(action) ? purposes : [null]) {
        const { allowed, policyIds } = evaluate(handle, stranger, action, purpose, tenant, (text) => findings.add(text));
        if (allowed) for (const id of policyIds) findings.add(`${policies.get(id)?.where ?? 'policy'}: "${id}" gives ${action} to callers that it does not name`);
      }
    }
  }
  return [...findings];
}

function evaluate(handle: string, caller: Caller, action: Action, purpose: Purpose | null, tenant: string, report: (finding: string) => void): Decision {
  if (needsPurpose(action) && purpose === null) return denied;
  if (later.has(action) && declaredLater.get(handle)?.has(action) !== true) return denied;
  const principal = { type: 'Cofre::Caller', id: caller.spiffeId };
  const resource = { type: 'Cofre::Tenant', id: tenant };
  let answer: cedar.AuthorizationAnswer;
  try {
    answer = cedar.statefulIsAuthorized({
      principal,
      action: { type: 'Cofre::Action', id: action },
      resource,
      context: purpose === null ? {} : { purpose: { __entity: { type: 'Cofre::Purpose', id: purpose } } },
      entities: [
        { uid: principal, attrs: { tenant: caller.tenant, service: caller.service }, parents: [] },
        { uid: resource, attrs: { name: tenant }, parents: [] },
      ],
      preparsedSchemaName: handle,
      preparsedPolicySetId: handle,
      validateRequest: true,
    });
  } catch {
    report('the policy engine failed');
    return denied;
  }
  if (answer.type === 'failure') {
    report('the policy engine refused a request');
    return denied;
  }
  const { decision, diagnostics } = answer.response;
  // Cedar skips a policy that fails and decides by the rest. A skipped forbid would be a hole, so one failure is a refusal here.
  if (diagnostics.errors.length > 0) {
    const failed = diagnostics.errors.map(({ policyId }) => policyId).sort();
    report(`the evaluation of ${failed.join(', ')} failed`);
    return { allowed: false, policyIds: failed };
  }
  return { allowed: decision === 'allow', policyIds: diagnostics.reason.toSorted() };
}

function needsPurpose(action: Action): boolean {
  return action === 'detokenize' || action === 'detokenize_batch';
}

/** Cedar has no call to forget a set: an empty one takes its place. */
function release(handle: string): void {
  cedar.preparsePolicySet(handle, { staticPolicies: {} });
  cedar.preparseSchema(handle, '');
  declaredLater.delete(handle);
}

function finding(file: string, text: string, error: cedar.DetailedError): string {
  const [first] = error.sourceLocations ?? [];
  const where = first === undefined ? file : `${file}:${lineOf(text, first.start)}`;
  const message = error.message.replace(/^for policy `policy\d+`[,:] /, '');
  return `${where}: ${message}${error.help === null ? '' : ` (${error.help})`}`;
}

/** Cedar counts bytes of UTF-8. Lines from 1. */
function lineOf(text: string, byteOffset: number): number {
  return Buffer.from(text, 'utf8').subarray(0, byteOffset).toString('utf8').split('\n').length;
}
