/** What every refusal and failure looks like, said apart from the product's own table: DESIGN section 6. */
import type { Test } from 'tap';
import type { Reply } from './api-client.ts';

/** Status and `retryable` of each code. */
const contract: Readonly<Record<string, readonly [status: number, retryable: boolean]>> = {
  invalid_request: [400, false],
  invalid_pan: [422, false],
  sad_refused: [422, false],
  pan_in_other_field: [422, false],
  not_authorized: [403, false],
  not_found: [404, false],
  token_unknown: [404, false],
  token_revoked: [410, false],
  token_expired: [410, false],
  token_suspended: [409, false],
  idempotency_conflict: [409, false],
  reference_required: [422, false],
  reference_used: [409, false],
  change_decided: [409, false],
  payload_too_large: [413, false],
  too_many_items: [422, false],
  quota_exceeded: [429, true],
  sealed: [503, true],
  hsm_unavailable: [503, true],
  store_unavailable: [503, true],
  audit_unavailable: [503, true],
  overloaded: [503, true],
  outcome_unknown: [503, true],
  internal: [500, false],
};

/** Every code of the contract. */
export const contractCodes: readonly string[] = Object.keys(contract);

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/u;

/** What is wrong with `reply` as the problem of `code`; null where nothing is. */
export function faultOfProblem(reply: Reply, code: string): string | null {
  const row = contract[code];
  if (row === undefined) return `${code} is no code of the contract`;
  const [status, retryable] = row;
  let body: Record<string, unknown>;
  try {
    body = reply.json();
  } catch {
    return `the body is not JSON, with status ${reply.status}`;
  }
  if (body['code'] !== code || reply.status !== status) return `the answer is ${reply.status} ${String(body['code'])}, not ${status} ${code}`;
  if (Object.keys(body).sort().join() !== 'code,request_id,retryable,status,title,type') return `the members are ${Object.keys(body).join()}`;
  if (body['status'] !== status) return 'the member status is not the status';
  if (body['retryable'] !== retryable) return 'retryable is wrong';
  if (body['type'] !== `urn:cofre:error:${code}`) return 'the type is wrong';
  if (typeof body['title'] !== 'string' || body['title'] === '') return 'there is no title';
  if (typeof body['request_id'] !== 'string' || !uuid.test(body['request_id'])) return 'the request id is no UUID';
  if (!/^application\/problem\+json(;|$)/u.test(reply.headers['content-type'] ?? '')) return `the type of the answer is ${reply.headers['content-type']}`;
  if (reply.headers['cache-control'] !== 'no-store') return 'the answer may be stored';
  const retryAfter = reply.headers['retry-after'];
  if (retryable !== (retryAfter !== undefined && /^[1-9]\d*$/u.test(retryAfter))) return `Retry-After is ${retryAfter}`;
  return null;
}

/** Asserts that `reply` is the problem of `code`, in every respect. */
export function isProblem(t: Test, reply: Reply, code: string, message?: string): boolean {
  return t.equal(faultOfProblem(reply, code), null, message === undefined ? code : `${message}: ${code}`);
}
