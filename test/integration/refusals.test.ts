/** What the API refuses: each with its code, the server serving on, and no card number left anywhere. */
import { gzipSync } from 'node:zlib';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { startAppliance, withDeadline } from '../support/appliance.ts';
import { parseReplies, readToEnd } from '../support/api-client.ts';
import { tracesIn, tracesOf } from '../support/card-traces.ts';
import { freshDatabase } from '../support/database.ts';
import { isProblem } from '../support/problem.ts';
import { cardOfLength, cardText } from '../support/test-cards.ts';

const database = await freshDatabase(t, { migrated: false });
const appliance = await startAppliance(t, { database, config: { listeners: { request_timeout: '1s' } } });
const checkout = appliance.client('checkout');
const getnet = appliance.client('getnet');

/** The number that must be found nowhere afterwards, in its two parts and whole. */
const pan = cardText(1);
const amex = cardOfLength(15, 5);
const spaced = pan.replaceAll(/(\d{4})(?=\d)/gu, '$1 ');
const dashed = pan.replaceAll(/(\d{4})(?=\d)/gu, '$1-');
const secrets = [pan, amex, spaced, dashed];
const other = cardText(2);
const { token } = (await checkout.post('/v1/tokenize', { pan: other })).json() as { token: string };

/** A test at whose end the server still serves. */
const refusing = async (name: string, run: (t: Test) => Promise<void>): Promise<void> => {
  await t.test(name, async (t) => {
    await run(t);
    t.equal((await checkout.post('/v1/validate', { token })).status, 200, 'it serves on');
  });
};

const text = (body: string): Buffer => Buffer.from(body, 'utf8');

await refusing('sensitive authentication data is refused by the name of its field, wherever it stands and whatever its value', async (t) => {
  for (const name of ['cvv', 'CVC', 'cvc2', 'Cvv2', 'card_cvv', 'cid', 'csc', 'security_code', 'pin', 'PIN_block', 'track1', 'track_2', 'Track-Data', 'magstripe', 'card.cvv', 'card[cvc]']) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan, [name]: '123' }), 'sad_refused', name);
  }
  const bodies = [{ pan, metadata: { cvv: '1' } }, { pan, card: { holder: { cvv: null } } }, { cvv: true, pan }, { pan: '1', cvv: 1 }, { metadata: [{ pin: '0000' }] }];
  for (const body of bodies) isProblem(t, await checkout.post('/v1/tokenize', body), 'sad_refused', JSON.stringify(body).replace(pan, '…'));
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${pan}","c\\u0076v":"123"}`) }), 'sad_refused', 'an escaped name');
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${pan}","ｃｖｖ":"123"}`) }), 'sad_refused', 'a full-width name');
  isProblem(t, await getnet.post('/v1/detokenize', { token, purpose: 'capture', cvv: '123' }), 'sad_refused');
  isProblem(t, await checkout.post('/v1/validate', { token, pin: '1234' }), 'sad_refused');
  isProblem(t, await checkout.post('/v1/nowhere', { cvv: '123' }), 'sad_refused');
  const track = `;${pan}=29121010000000000000?`;
  for (const body of [{ pan: track }, { pan, cardholder: track }, { pan, cardholder: `%B${pan}^SILVA/ANA^2912101?` }]) isProblem(t, await checkout.post('/v1/tokenize', body), 'sad_refused', 'track data');
});

await refusing('a card number in any other field is refused, however it is written', async (t) => {
  const wide = pan.split('').map((digit) => String.fromCodePoint(0xff10 + Number(digit))).join('');
  for (const written of [pan, amex, spaced, dashed, wide, `card ${pan}.`, `${pan}1229`, `0000${pan}`, pan.split('').join(' '), pan.split('').join('\u200b')]) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan: other, cardholder: written }), 'pan_in_other_field', `${written.length} characters`);
  }
  const bodies = [
    { pan: other, metadata: { note: pan } },
    { pan: other, metadata: { note: Number(amex) } },
    { pan: other, metadata: { [pan]: 1 } },
    { pan: other, expiry: pan },
    { pan: other, unknown: { deep: [[{ a: spaced }]] } },
    { pan: [pan] },
    { pan: { pan } },
    { Pan: pan },
    { number: pan },
    [pan],
    pan,
  ];
  for (const body of bodies) isProblem(t, await checkout.post('/v1/tokenize', body), 'pan_in_other_field', JSON.stringify(body).replaceAll(/\d{4,}/gu, '…'));
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${other}","cardholder":"${pan}","cardholder":"ANA"}`) }), 'pan_in_other_field', 'in a member that another of its name hides');
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${other}","cardholder":"\\u00${(0x30 + Number(pan[0])).toString(16)}${pan.slice(1)}"}`) }), 'pan_in_other_field', 'with an escaped digit');
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${other}","metadata":{"n":${pan}e0}}`) }), 'pan_in_other_field', 'as a number with an exponent');
  isProblem(t, await getnet.post('/v1/detokenize', { token: pan, purpose: 'capture' }), 'pan_in_other_field');
  isProblem(t, await getnet.post('/v1/detokenize', { token, purpose: 'capture', reference: pan }), 'pan_in_other_field');
  isProblem(t, await checkout.post('/v1/validate', { token: pan }), 'pan_in_other_field');
  isProblem(t, await checkout.post('/v1/nowhere', { pan }), 'pan_in_other_field');
  isProblem(t, await checkout.call('DELETE', '/v1/tokenize', { body: { pan } }), 'pan_in_other_field');
});

await refusing('of two members pan the last counts, as JSON.parse has it, and the first leaves no trace', async (t) => {
  const reply = await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${pan}","pan":"${other}"}`) });
  t.equal(reply.status, 200);
  t.equal(reply.json()['token'], token);
});

await refusing('a card number in the URL or in a header is refused', async (t) => {
  for (const path of [`/v1/tokens/${pan}`, `/v1/tokens/${dashed}`, `/v1/tokens/x?pan=${pan}`, `/v1/nowhere/${amex}`, `/${pan}`, `/v1/tokens/${encodeURIComponent(spaced)}`]) {
    isProblem(t, await checkout.get(path), 'pan_in_other_field', path.replaceAll(/\d{4,}/gu, '…'));
  }
  isProblem(t, await checkout.post(`/v1/tokenize?x=${pan}`, { pan: other }), 'pan_in_other_field');
  for (const headers of [{ 'x-note': pan }, { 'x-note': `card ${spaced}` }, { cookie: `a=1; card=${pan}` }, { [`x-${pan}`]: '1' }, { 'idempotency-key': pan }, { 'idempotency-key': `order-${dashed}` }, { 'user-agent': pan }, { authorization: `Bearer ${pan}` }, { 'content-type': `application/json; card=${pan}` }]) {
    isProblem(t, await checkout.post('/v1/tokenize', { pan: other }, headers), 'pan_in_other_field', Object.keys(headers).join().replaceAll(/\d{4,}/gu, '…'));
  }
});

await refusing('a card number in the URL, percent-encoded digit by digit, gives no token and stays nowhere', async (t) => {
  const encoded = pan.split('').map((digit) => `%3${digit}`).join('');
  for (const path of [`/v1/tokens/${encoded}`, `/v1/tokens/x?pan=${encoded}`]) {
    const reply = await checkout.get(path);
    t.ok(isProblem(t, reply, 'pan_in_other_field'));
  }
});

await refusing('a URL that cannot be read is refused like any other', async (t) => {
  for (const path of ['/v1/tokens/%zz', '/%', '/v1/tokens/%ff', `/v1/%${pan.slice(0, 1)}`, '/v1/tokens/a%']) isProblem(t, await checkout.get(path), 'invalid_request', path);
  isProblem(t, await checkout.get(`/v1/tokens/%zz${pan}`), 'pan_in_other_field');
  isProblem(t, await checkout.call('POST', '/v1/%zz', { body: { pan } }), 'invalid_request', 'with a body');
});

await refusing('what is not JSON is refused', async (t) => {
  const broken = [`{"pan":"${pan}"`, `{"pan":"${pan}",}`, `{'pan':'${pan}'}`, `{pan:"${pan}"}`, `\ufeff{"pan":"${pan}"}`, `{"pan":"${pan}"}{}`, `{"pan":"${pan}"} x`, `{"pan":"${pan}","a":NaN}`, `{"pan":"${pan}","a":01}`, `{"pan":"${pan}\n"}`, `{"pan":"${pan}\\x"}`, `// c\n{"pan":"${pan}"}`, ' ', 'x', '{', '"', '\u0000'];
  for (const body of broken) isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(body) }), 'invalid_request', body.replaceAll(/\d{4,}/gu, '…'));
  for (const bytes of [[0xff], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xf5, 0x80, 0x80, 0x80]]) {
    isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: Buffer.concat([text(`{"pan":"${pan}","cardholder":"`), Buffer.from(bytes), text('"}')]) }), 'invalid_request', `bytes ${bytes.join()}`);
  }
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: Buffer.alloc(0) }), 'invalid_request', 'an empty body');
  isProblem(t, await checkout.call('POST', '/v1/tokenize'), 'invalid_request', 'no body');
});

await refusing('what is JSON but no request is refused', async (t) => {
  const bodies = [{}, [], null, true, 7, 'x', [{}], { items: [] }, { pan: null }, { pan: true }, { pan: [] }, { pan: {} }, { pan: 7 }, { pan: other, more: 1 }, { pan: other, PAN: 'x' }, { pan: other, format: 'random' }, { pan: other, ttl_seconds: 0 }, { pan: other, ttl_seconds: 1.5 }, { pan: other, ttl_seconds: '60' }, { pan: other, ttl_seconds: 1e9 }, { pan: other, format: 'OPAQUE' }, { pan: other, reuse: 'true' }, { pan: other, reuse: null }, JSON.parse('{"pan":"x","__proto__":{"pan":"y"}}')];
  for (const body of bodies) {
    isProblem(t, await checkout.post('/v1/tokenize', body), 'invalid_request', JSON.stringify(body).replaceAll(/\d{4,}/gu, '…'));
  }
  for (const body of [[{ pan: other }], { items: [{ pan: other }] }]) isProblem(t, await checkout.post('/v1/tokenize', body), 'pan_in_other_field', 'the number of a batch');
  for (const numeric of [pan, `${pan}.0`, `${pan}e0`, `-${pan}`]) isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":${numeric}}`) }), 'invalid_request', 'a numeric pan is never coerced');
});

await refusing('nesting beyond what the API needs is refused', async (t) => {
  const nested = (depth: number): Buffer => text(`{"pan":"${pan}","a":${'['.repeat(depth)}${']'.repeat(depth)}}`);
  for (const depth of [16, 1000, 7000]) isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: nested(depth) }), 'invalid_request', `${depth} deep`);
});

await refusing('any other type of content is refused', async (t) => {
  const body = text(`{"pan":"${pan}"}`);
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/jsonx', 'application/json-seq', 'text/json', 'json', 'application/xml', '*/*', '', ';', 'application/json, text/plain']) {
    isProblem(t, await checkout.call('POST', '/v1/tokenize', { body, headers: { 'content-type': type } }), 'invalid_request', type);
  }
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: text(`pan=${pan}&x=1`), headers: { 'content-type': 'application/x-www-form-urlencoded' } }), 'invalid_request');
  isProblem(t, await checkout.call('POST', '/v1/tokenize', { body: gzipSync(body), headers: { 'content-encoding': 'gzip' } }), 'invalid_request', 'compressed');
  for (const type of ['application/json', 'Application/JSON;charset=UTF-8', 'application/json ; charset="utf-8"']) t.equal((await checkout.call('POST', '/v1/tokenize', { body: text(`{"pan":"${other}"}`), headers: { 'content-type': type } })).status, 200, type);
});

await refusing('a body beyond its limit is payload_too_large, with and without a length', async (t) => {
  const body = { pan, metadata: { note: 'x'.repeat(20_000) } };
  for (const chunked of [false, true]) {
    isProblem(t, await checkout.call('POST', '/v1/tokenize', { body, chunked }), 'payload_too_large', chunked ? 'chunked' : 'with its length');
    isProblem(t, await checkout.call('POST', '/v1/nowhere', { body, chunked }), 'payload_too_large', 'also where nothing is');
    isProblem(t, await checkout.call('GET', '/v1/tokens/x', { body, chunked }), 'payload_too_large', 'also on GET');
  }
  const fits = { pan: other, metadata: { a: 'é'.repeat(256), b: 'é'.repeat(256) } };
  t.equal((await checkout.call('POST', '/v1/tokenize', { body: fits, chunked: true })).status, 200, 'what fits is taken in chunks too');
});

await refusing('a body without an end is cut off', async (t) => {
  const socket = await checkout.connect();
  const back = readToEnd(socket);
  socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n`);
  const piece = text(`10000\r\n${pan.repeat(4096)}\r\n`);
  while (!socket.destroyed && !socket.writableEnded) {
    if (!socket.write(piece)) await Promise.race([new Promise((done) => socket.once('drain', done)), new Promise((done) => socket.once('close', done))]);
  }
  const answer = await back;
  t.same(tracesIn(answer, secrets), []);
});

await refusing('a body where none belongs is refused', async (t) => {
  for (const path of [`/v1/tokens/${token}`, '/openapi.json']) {
    isProblem(t, await checkout.call('GET', path, { body: { pan } }), 'invalid_request');
    isProblem(t, await checkout.call('GET', path, { body: { pan }, chunked: true }), 'invalid_request');
  }
});

await refusing('unknown paths and methods are not_found, with or without a body', async (t) => {
  for (const [method, path] of [['GET', '/'], ['GET', '/v1/tokenize'], ['PUT', '/v1/tokenize'], ['PATCH', '/v1/tokenize'], ['DELETE', '/v1/validate'], ['OPTIONS', '/v1/tokenize'], ['TRACE', '/v1/tokenize'], ['PROPFIND', '/v1/tokenize'], ['POST', '/v1/tokenize/'], ['POST', '/V1/tokenize'], ['POST', '//v1/tokenize'], ['POST', '/v1/tokens/x'], ['GET', '/v1/status'], ['GET', '/metrics']] as const) {
    isProblem(t, await checkout.call(method, path), 'not_found', `${method} ${path}`);
    if (method !== 'GET' && method !== 'TRACE') isProblem(t, await checkout.call(method, path, { body: { token } }), 'not_found', `${method} ${path} with a body`);
  }
  const head = await checkout.call('HEAD', '/v1/tokenize');
  t.equal(head.status, 404);
  t.equal(head.body.length, 0);
});

await refusing('a header or URL beyond its limit is refused', async (t) => {
  isProblem(t, await checkout.get(`/v1/tokens/${'x'.repeat(3000)}`), 'invalid_request');
  for (const request of [`GET /v1/tokens/${'x'.repeat(70_000)} HTTP/1.1\r\nHost: localhost\r\n\r\n`, `GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX-A: ${'x'.repeat(70_000)}\r\n\r\n`]) {
    const [reply] = parseReplies(await checkout.exchange(request));
    isProblem(t, reply!, 'invalid_request');
  }
});

await refusing('a request with more than a hundred headers is refused, whether Node still tells of them or not', async (t) => {
  const body = JSON.stringify({ pan: other });
  const own = `POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n`;
  for (const [more, status] of [[96, 200], [97, 400], [130, 400], [160, 400], [700, 400]] as const) {
    const [reply] = parseReplies(await checkout.exchange(`${own}${Array.from({ length: more }, (_, n) => `X-${n}: 1\r\n`).join('')}\r\n${body}`));
    t.equal(reply!.status, status, `${4 + more} headers`);
    if (status === 400) isProblem(t, reply!, 'invalid_request');
  }
});

await refusing('what is not HTTP gets one problem and the end of its connection', async (t) => {
  const body = `{"pan":"${pan}"}`;
  const head = 'POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n';
  const garbage = {
    'no HTTP at all': `${pan}\r\n\r\n`,
    'binary': Buffer.concat([Buffer.from([0, 1, 2, 255, 254]), text(pan)]),
    'a TLS record': Buffer.from([0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00]),
    'another protocol': `POST /v1/tokenize HTTP/3.0\r\nHost: localhost\r\n\r\n${body}`,
    'the preface of HTTP/2': 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    'an unknown method': `FETCH /v1/tokenize HTTP/1.1\r\nHost: localhost\r\n\r\n`,
    'a space before the colon': `${head}Content-Length : ${body.length}\r\n\r\n${body}`,
    'a control character in a header': `${head}X-A: a\u0001b\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    'a length that is no number': `${head}Content-Length: ${body.length}x\r\n\r\n${body}`,
    'a negative length': `${head}Content-Length: -1\r\n\r\n${body}`,
    'a length beyond all bounds': `${head}Content-Length: 99999999999999999999999\r\n\r\n${body}`,
  };
  for (const [name, bytes] of Object.entries(garbage)) {
    const replies = parseReplies(await checkout.exchange(bytes));
    t.equal(replies.length, 1, `${name}: one answer`);
    isProblem(t, replies[0]!, 'invalid_request', name);
    t.equal(replies[0]!.headers['connection'], 'close', name);
  }
});

await refusing('requests whose length can be read in two ways are refused, and what follows them is not taken for a request', async (t) => {
  const inner = `POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${18 + pan.length}\r\n\r\n{"pan":"${pan}"}`;
  const head = 'POST /v1/validate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n';
  const smuggled = {
    'length and chunks': `${head}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${inner}`,
    'chunks and length': `${head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n${inner}`,
    'two lengths': `${head}Content-Length: 2\r\nContent-Length: 60\r\n\r\n{}${inner}`,
    'two lengths in one header': `${head}Content-Length: 2, 60\r\n\r\n{}${inner}`,
    'chunked twice': `${head}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n${inner}`,
    'chunked, but not last': `${head}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n${inner}`,
    'an encoding that is not chunked': `${head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n${inner}`,
    'a folded header': `${head}X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}${inner}`,
    'lines that end in LF': `POST /v1/validate HTTP/1.1\nHost: localhost\nContent-Length: 2\n\n{}${inner}`,
    'a chunk without a size': `${head}Transfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n${inner}`,
    'a chunk whose size is no number': `${head}Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n${inner}`,
    'a chunk of another size': `${head}Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n${inner}`,
  };
  for (const [name, bytes] of Object.entries(smuggled)) {
    const replies = parseReplies(await checkout.exchange(bytes));
    t.ok(replies.length >= 1, name);
    for (const reply of replies) isProblem(t, reply, 'invalid_request', name);
  }
});

await refusing('requests in one packet are answered in their order, each its own', async (t) => {
  const body = JSON.stringify({ token });
  const one = `POST /v1/validate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  const last = 'GET /v1/nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n';
  const replies = parseReplies(await checkout.exchange(one + one + last));
  t.same(replies.map((reply) => reply.status), [200, 200, 404]);
  t.equal(new Set(replies.map((reply) => reply.headers['x-request-id'])).size, 3);
});

await refusing('whoever asks for the end of a connection is told of it whatever the answer is, and nobody else', async (t) => {
  // A client keeps a connection of whose end it was not told, and loses its next request on it.
  for (const [path, body] of [['/v1/validate', '{"token":"tok_none"}'], ['/v1/validate', '{"token":7}'], ['/v1/tokenize', '{'], ['/v1/nowhere', '{}'], ['/v1/%', '{}']] as const) {
    const ask = (connection: string): string => `POST ${path} HTTP/1.1\r\nHost: localhost\r\n${connection}Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
    const replies = parseReplies(await checkout.exchange(ask('') + ask('Connection: close\r\n')));
    t.same(replies.map(({ headers }) => headers.connection === 'close'), [false, true], `${path} ${body}`);
  }
});

await refusing('a request without Host, and one that expects what nobody knows, are answered in the API\'s own words', async (t) => {
  const [homeless] = parseReplies(await checkout.exchange('GET /openapi.json HTTP/1.1\r\nConnection: close\r\n\r\n'));
  isProblem(t, homeless!, 'invalid_request');
  const body = JSON.stringify({ token });
  const [expecting] = parseReplies(await checkout.exchange(`POST /v1/validate HTTP/1.1\r\nHost: localhost\r\nExpect: 200-maybe\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
  t.equal(expecting!.status, 200);
  const [continued] = parseReplies(await checkout.exchange(`POST /v1/validate HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
  t.equal(continued!.status, 200);
});

await refusing('a body that does not arrive in time is refused, and its connection ends though the client holds on to it', async (t) => {
  const socket = await checkout.connect({ allowHalfOpen: true });
  const back = readToEnd(socket);
  socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"pan":"${pan}"`);
  // A byte now and then, as if the rest were still to come.
  const drip = setInterval(() => {
    if (socket.writable) socket.write(' ');
  }, 100);
  const answer = await back.finally(() => clearInterval(drip));
  const [reply] = parseReplies(answer);
  isProblem(t, reply!, 'invalid_request');
  t.same(tracesIn(answer, secrets), []);
});

await refusing('a head that does not arrive in time is refused', async (t) => {
  const [reply] = parseReplies(await checkout.exchange(`POST /v1/tokenize HTTP/1.1\r\nX-Card: ${pan}`));
  isProblem(t, reply!, 'invalid_request');
});

await refusing('clients that hang up in the middle of a body leave nothing behind', async (t) => {
  for (let n = 0; n < 10; n += 1) {
    const socket = await checkout.connect();
    socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"pan":"${pan}",`);
    if (n % 2 === 0) await sleep(20);
    socket.destroy();
  }
  for (let n = 0; n < 10; n += 1) {
    const socket = await checkout.connect();
    const body = JSON.stringify({ pan: other });
    socket.write(`POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
    socket.destroy();
  }
  t.equal((await withDeadline(checkout.post('/v1/validate', { token }), 10_000, 'the next call')).status, 200);
});

await refusing('no refused card number is in any answer, message or table, in any form', async (t) => {
  t.ok(appliance.transcript.length > 200);
  t.same(await tracesOf(appliance, secrets), []);
  const places = (await tracesOf(appliance, [token])).map((trace) => trace.replace(/^.* in /u, ''));
  t.ok(places.includes('table cards') && places.includes('table batches'), 'the search finds what is there');
  const errors = appliance.messages().filter((message) => message['level'] === 'error');
  t.same(errors, [], 'and none of it was a fault of the vault');
});
