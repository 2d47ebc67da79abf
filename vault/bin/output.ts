/** What a vault prints, and its log, which somebody else reads. */

/** Has this process go on where nobody reads its output any more. Node would end it at the next line, in the middle of its calls. */
export function goOnWithoutReader(): void {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
}
