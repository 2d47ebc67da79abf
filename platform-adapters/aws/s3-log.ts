/**
 * The files of a log in a bucket. Whoever runs the vault sets region, credentials and, for other makers' stores, AWS_ENDPOINT_URL_S3 in the
 * environment, as for every tool of AWS.
 *
 * Objects that are written once are put under the condition that none is there, so that the store itself keeps them; a bucket with Object Lock
 * keeps them from its owner too.
 */
import type { Readable } from 'node:stream';
import { GetObjectCommand, PutObjectCommand, S3Client, S3ServiceException } from '@aws-sdk/client-s3';
import type { WritableLogFiles } from '../../audit/log-source.ts';

/** Times that a put is repeated which met another one of the same object. */
const maxConflicts = 5;
/** How long an object may take, its repetitions included. The SDK waits for ever: calls that nobody waits for any more would keep their connections, of which it has fifty. */
const answerMs = 50_000;

/**
 * The files under `s3://<bucket>/<prefix>`. `close` ends the connections.
 *
 * @throws Error if the address is none; its methods, Error of one line that names the object.
 */
export function s3Files(address: string, env: NodeJS.ProcessEnv, withinMs = answerMs): WritableLogFiles & { close(): void } {
  const match = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([^?#]*))?$/u.exec(address);
  if (match === null) throw new Error('the address of a bucket is to look like s3://bucket/prefix');
  const [, bucket = '', path = ''] = match;
  const prefix = path === '' || path.endsWith('/') ? path : `${path}/`;
  // Stores of other makers seldom have a name for each bucket, and no regions.
  const elsewhere = (env['AWS_ENDPOINT_URL_S3'] ?? env['AWS_ENDPOINT_URL'] ?? '') !== '';
  const client = new S3Client({ forcePathStyle: elsewhere, ...(elsewhere && (env['AWS_REGION'] ?? '') === '' ? { region: 'us-east-1' } : {}) });

  const failed = (key: string, what: string, error: unknown): Error => {
    const status = error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;
    const { code, name = 'unknown' } = (error ?? {}) as { code?: unknown; name?: string };
    const why = name === 'AbortError' ? 'no answer in time' : typeof code === 'string' ? code : name;
    return new Error(`s3://${bucket}/${key}: cannot be ${what} (${why}${status === undefined ? '' : `, ${status}`})`, { cause: error });
  };

  async function put(path: string, bytes: Uint8Array, condition: { readonly IfNoneMatch?: '*' }): Promise<boolean> {
    const key = prefix + path;
    const deadline = { abortSignal: AbortSignal.timeout(withinMs) };
    for (let attempt = 0; ; attempt++) {
      try {
        await client.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: bytes, ContentType: path === 'checkpoint' || path === 'vkey' ? 'text/plain; charset=utf-8' : 'application/octet-stream', ...condition }), deadline);
        return true;
      } catch (error) {
        const status = error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;
        // There already: perhaps by an attempt of ours whose answer was lost.
        if (status === 412) return false;
        if (status !== 409 || attempt === maxConflicts) throw failed(key, 'written', error);
      }
    }
  }

  return {
    async read(path, maxBytes) {
      const key = prefix + path;
      try {
        const { Body: body, ContentLength: length } = await client.send(new GetObjectCommand({ Bucket: bucket, Key: key }), { abortSignal: AbortSignal.timeout(withinMs) });
        if (body === undefined) throw new Error('an answer without an object');
        const stream = body as Readable;
        const tooLarge = (): TooLarge => new TooLarge(`s3://${bucket}/${key}: is larger than it can be`);
        if ((length ?? 0) > maxBytes) {
          stream.destroy();
          throw tooLarge();
        }
        // A store need not say how long it is. To leave the loop ends the answer.
        const chunks: Uint8Array[] = [];
        let size = 0;
        for await (const chunk of stream as AsyncIterable<Uint8Array>) {
          size += chunk.length;
          if (size > maxBytes) throw tooLarge();
          chunks.push(chunk);
        }
        return Buffer.concat(chunks);
      } catch (error) {
        if (error instanceof TooLarge) throw error;
        if (error instanceof S3ServiceException && error.name === 'NoSuchKey') return null;
        throw failed(key, 'read', error);
      }
    },
    create: (path, bytes) => put(path, bytes, { IfNoneMatch: '*' }),
    async replace(path, bytes) {
      await put(path, bytes, {});
    },
    close: () => client.destroy(),
  };
}

class TooLarge extends Error {}
