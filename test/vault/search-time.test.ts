import t from 'tap';
import { readSearchTime } from '../../vault/search-time.ts';

t.test('a time is taken as it is said, a day by its beginning', async (t) => {
  for (const [text, time] of [
    ['2026-11-25', '2026-11-25T00:00:00.000Z'],
    ['2024-02-29', '2024-02-29T00:00:00.000Z'],
    ['2026-11-25T10:05Z', '2026-11-25T10:05:00.000Z'],
    ['2026-11-25T10:05:59Z', '2026-11-25T10:05:59.000Z'],
    ['2026-12-31T23:59:59.5Z', '2026-12-31T23:59:59.500Z'],
    ['0001-01-01', '0001-01-01T00:00:00.000Z'],
  ] as const) t.equal(readSearchTime(text)?.toISOString(), time, text);
});

t.test('what never comes, or is in another form, is no time', async (t) => {
  for (const text of ['2026-02-31', '2026-02-30', '2025-02-29', '2026-04-31', '2026-04-31T10:00Z', '2026-13-01', '2026-00-10', '2026-01-00', '2026-01-32', '2026-01-01T24:00Z', '2026-01-01T24:00:00.000Z', '2026-01-01T23:60Z', '2026-01-01T10:00:60Z', '2026-11-25T10:00', '2026-11-25 10:00Z', '2026-11-25T10Z', '26-11-25', '2026-11-25\n', 'yesterday', '']) t.equal(readSearchTime(text), null, JSON.stringify(text));
});
