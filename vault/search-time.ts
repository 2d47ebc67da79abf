/** Times as a search of the log takes them, of UTC: a day, or a time that ends in Z. Pure. */

export const searchTimePattern = '^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,3})?)?Z)?$';

const form = new RegExp(searchTimePattern, 'u');

/** The time that `text` says, a day by its beginning; null if it is in another form, or never comes, as 2026-02-31 or 24:00. */
export function readSearchTime(text: string): Date | null {
  if (!form.test(text)) return null;
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return null;
  // JavaScript takes some days that a month does not have for days of the next one.
  const said = text.slice(0, 'YYYY-MM-DDTHH:MM'.length).replace('Z', '');
  return time.toISOString().startsWith(said) ? time : null;
}
