import { inspect } from 'node:util';
import t from 'tap';
import { errorCodes, problemOfItem, renderProblem, VaultError, type ErrorCode } from '../../vault/errors.ts';

/** Status, retryable, Retry-After in seconds: the contract, said a second time. */
const contract: Readonly<Record<ErrorCode, readonly [status: number, retryable: boolean, retryAfterSeconds: number | undefined]>> = {
  invalid_request: [400, false, undefined],
  invalid_pan: [422, false, undefined],
  sad_refused: [422, false, undefined],
  pan_in_other_field: [422, false, undefined],
  not_authorized: [403, false, undefined],
  not_found: [404, false, undefined],
  token_unknown: [404, false, undefined],
  token_revoked: [410, false, undefined],
  token_expired: [410, false, undefined],
  token_suspended: [409, false, undefined],
  idempotency_conflict: [409, false, undefined],
  reference_required: [422, false, undefined],
  reference_used: [409, false, undefined],
  change_decided: [409, false, undefined],
  payload_too_large: [413, false, undefined],
  too_many_items: [422, false, undefined],
  quota_exceeded: [429, true, 60],
  sealed: [503, true, 30],
  hsm_unavailable: [503, true, 5],
  store_unavailable: [503, true, 2],
  audit_unavailable: [503, true, 5],
  overloaded: [503, true, 1],
  outcome_unknown: [503, true, 5],
  internal: [500, false, undefined],
};

t.test('each code has the status of the contract, and there is no other code', async (t) => {
  t.same([...errorCodes].sort(), Object.keys(contract).sort());
  for (const code of errorCodes) {
    const [status, retryable, wait] = contract[code];
    const error = new VaultError(code);
    t.match(error, { status, retryable, code, recorded: false });
    const { problem, retryAfterSeconds } = renderProblem(error, 'id');
    t.same(problem, { type: `urn:cofre:error:${code}`, title: error.message, status, code, retryable, request_id: 'id' });
    t.equal(retryAfterSeconds, wait, code);
    t.same(problemOfItem(code), { code, title: error.message, status, retryable });
    t.equal(retryable, wait !== undefined, 'whoever may retry is told when');
  }
});

t.test('what is not one of ours is internal, and nothing of it is shown', async (t) => {
  const secret = 'text that no client may see';
  const looksLikeOurs = Object.assign(new Error(secret), { code: 'not_authorized', status: 403, name: 'VaultError' });
  for (const thrown of [new Error(secret), looksLikeOurs, secret, null, undefined, 42, { code: 'sealed' }, new AggregateError([new VaultError('sealed')], secret)]) {
    const rendered = renderProblem(thrown, 'id');
    t.match(rendered.problem, { code: 'internal', status: 500, retryable: false, request_id: 'id' });
    t.notOk(JSON.stringify(rendered).includes(secret));
  }
});

t.test('the cause and the facts are for our eyes only', async (t) => {
  const error = new VaultError('store_unavailable', { cause: new Error('inner'), retryAfterSeconds: 9, facts: { purpose: 'capture' } });
  t.equal((error.cause as Error).message, 'inner');
  const rendered = renderProblem(error, 'id');
  t.equal(rendered.retryAfterSeconds, 9, 'its own Retry-After wins');
  t.notOk(/inner|capture/u.test(JSON.stringify(rendered)));
  t.ok(inspect(error).includes('inner'), 'a message of ours shows it');
  t.notOk('cause' in new VaultError('internal'));
});
