import t from 'tap';
import { openProgress } from '../../vault/bin/progress.ts';

function stream(isTTY: boolean): { written: string[]; stream: NodeJS.WriteStream } {
  const written: string[] = [];
  return { written, stream: { isTTY, write: (text: string) => written.push(text) } as unknown as NodeJS.WriteStream };
}

t.test('a person sees a bar, which goes in the end', async (t) => {
  const { written, stream: terminal } = stream(true);
  const progress = openProgress('verified', terminal);
  progress.update(0, 2_000_000);
  progress.update(1, 2_000_000);
  t.same(written, ['\r\u001B[K[                        ] verified 0 %, 0 of 2,000,000 entries'], 'not more than ten times a second');
  await new Promise((done) => setTimeout(done, 120));
  progress.update(1_000_000, 2_000_000);
  t.match(written[1]?.replace('\r\u001B[K', ''), /^\[############ {12}\] verified 50 %, 1,000,000 of 2,000,000 entries, \d+ s left$/u);
  progress.end();
  t.equal(written[2], '\r\u001B[K');
  progress.end();
  t.equal(written.length, 3);
});

t.test('a file gets a line now and then, and none for what is done at once', async (t) => {
  const { written, stream: file } = stream(false);
  const progress = openProgress('exported', file);
  for (let done = 0; done <= 100; done++) progress.update(done, 100);
  progress.end();
  t.same(written, []);
  const now = performance.now.bind(performance);
  t.intercept(performance, 'now', { value: () => now() + 5100 });
  progress.update(10, 0);
  progress.update(10, 0);
  t.equal(written.length, 1);
  t.match(written[0], /^exported 100 %, 10 of 0 entries\n$/u);
});
