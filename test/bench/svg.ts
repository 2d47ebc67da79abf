/** What the charts are drawn with: SVG as text, one self-contained file, legible on light and dark paper. Pure. */

/** Colours by role. Who looks at it has set light or dark; each pair keeps its contrast there. */
const style = `
  svg { --paper: #ffffff; --ink: #1b1f24; --faint: #59636e; --grid: #d8dee4; --one: #0b62c4; --two: #8a939c; --three: #b4470b; --four: #1a7f37; --five: #8250df; }
  @media (prefers-color-scheme: dark) { svg { --paper: #12161c; --ink: #e8edf2; --faint: #9da7b3; --grid: #2c343d; --one: #6cb0ff; --two: #7d8791; --three: #ff9a5c; --four: #56d364; --five: #c297ff; } }
  text { font: 12px system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif; fill: var(--ink); }
  .title { font-size: 17px; font-weight: 600; } .heading { font-size: 13px; font-weight: 600; } .faint { fill: var(--faint); } .small { font-size: 11px; }
  .end { text-anchor: end; } .middle { text-anchor: middle; }
  .grid { stroke: var(--grid); stroke-width: 1; } .axis { stroke: var(--faint); stroke-width: 1; } .span { stroke-width: 2; }
  .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
  .one { --own: var(--one); } .two { --own: var(--two); } .three { --own: var(--three); } .four { --own: var(--four); } .five { --own: var(--five); }
  .fill { fill: var(--own); } .stroke { stroke: var(--own); }`;

/** The classes that give a shape one of five colours. */
export const colours = ['one', 'two', 'three', 'four', 'five'] as const;
export type Colour = (typeof colours)[number];

export function escape(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

const round = (value: number): string => String(Math.round(value * 10) / 10);

export function text(x: number, y: number, content: string, classes = ''): string {
  return `<text x="${round(x)}" y="${round(y)}"${classes === '' ? '' : ` class="${classes}"`}>${escape(content)}</text>`;
}

export function line(x1: number, y1: number, x2: number, y2: number, classes: string): string {
  return `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" class="${classes}"/>`;
}

/** A rectangle that says `hint` under the pointer. */
export function bar(x: number, y: number, width: number, height: number, colour: Colour, hint: string): string {
  return `<rect x="${round(x)}" y="${round(y)}" width="${round(Math.max(width, 1))}" height="${round(height)}" rx="2" class="${colour} fill"><title>${escape(hint)}</title></rect>`;
}

export function polyline(points: readonly (readonly [x: number, y: number])[], colour: Colour): string {
  return `<polyline points="${points.map(([x, y]) => `${round(x)},${round(y)}`).join(' ')}" class="line ${colour} stroke"/>`;
}

/** The whole file. */
export function svgDocument(width: number, height: number, title: string, parts: readonly string[]): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${round(height)}" width="${width}" height="${round(height)}" role="img" aria-label="${escape(title)}">
<style>${style}
</style>
<rect width="100%" height="100%" style="fill: var(--paper)"/>
${parts.join('\n')}
</svg>
`;
}

/** Round numbers from 0 to the first that is not below `highest`, about `wanted` of them. */
export function ticks(highest: number, wanted: number): number[] {
  if (!(highest > 0)) return [0, 1];
  const rough = highest / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999)! * power;
  return Array.from({ length: Math.ceil(highest / step - 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/** 1, 2, 5, 10 … from the last that is not above `lowest` to the first that is not below `highest`. */
export function logTicks(lowest: number, highest: number): number[] {
  const steps: number[] = [];
  for (let power = Math.floor(Math.log10(lowest)); power <= Math.ceil(Math.log10(highest)); power++) for (const factor of [1, 2, 5]) steps.push(Number((factor * 10 ** power).toPrecision(6)));
  const from = Math.max(0, steps.findLastIndex((step) => step <= lowest));
  const to = steps.findIndex((step) => step >= highest);
  return steps.slice(from, Math.max(to, from + 1) + 1);
}

/** A number with its thousands told apart, and no more digits than help. */
export function figure(value: number): string {
  return value.toLocaleString('en', { maximumFractionDigits: value >= 100 ? 0 : value >= 10 ? 1 : 2 });
}
