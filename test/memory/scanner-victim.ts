/**
 * A process that puts test cards into its memory in known ways, for the scanner's test. It is started with an IPC channel, acts on one
 * message a time and answers each with `{done: true}`. Cards are named by their index (seed 77), so that no number crosses the channel.
 */
import { cardDigits, cardNumber } from '../support/cards.ts';

export const victimSeed = 77;

export type Order =
  /** Keeps the cards `first` … `first + count - 1` in memory in the given way. */
  | { readonly act: 'plant'; readonly how: 'buffer' | 'small buffer' | 'string' | 'wide string' | 'freed' | 'packed' | 'clipped'; readonly first: number; readonly count: number }
  | { readonly act: 'wipe' }
  | { readonly act: 'undumpable' };

// V8 keeps typed arrays of up to 64 bytes inside its own heap, where the garbage collector copies them about and leaves the old copies as they
// are: wiping such a Buffer wipes only the newest copy. Larger ones lie outside and stay where they are.
const blockBytes = 100;

const buffers: Buffer[] = [];
const strings: string[] = [];
const scratch = Buffer.alloc(cardDigits);

function plant(order: Order & { act: 'plant' }): void {
  const all = (write: (index: number) => void): void => {
    for (let index = order.first; index < order.first + order.count; index++) write(index);
  };
  switch (order.how) {
    case 'buffer':
      return all((index) => {
        const buffer = Buffer.alloc(blockBytes, 0x2e);
        cardNumber(index, buffer, 24, victimSeed);
        buffers.push(buffer);
      });
    case 'small buffer':
      all((index) => {
        const buffer = Buffer.allocUnsafeSlow(cardDigits);
        cardNumber(index, buffer, 0, victimSeed);
        buffers.push(buffer);
      });
      return globalThis.gc?.({ type: 'minor' });
    case 'string':
      return all((index) => {
        cardNumber(index, scratch, 0, victimSeed);
        strings.push(scratch.toString('latin1'));
        scratch.fill(0);
      });
    case 'wide string':
      return all((index) => {
        cardNumber(index, scratch, 0, victimSeed);
        const wide = Buffer.alloc(2 * (cardDigits + 1));
        for (let i = 0; i < cardDigits; i++) wide[2 * i] = scratch[i]!;
        wide.writeUInt16LE(0x263a, 2 * cardDigits); // a character beyond Latin-1 keeps V8 from narrowing the string to one byte a unit
        strings.push(wide.toString('utf16le'));
        wide.fill(0);
        scratch.fill(0);
      });
    case 'freed':
      // Freed memory is not cleared. 100 KB blocks come from malloc's heap and stay in the process; the allocator writes only over their head.
      for (let index = order.first; index < order.first + order.count; index++) {
        const block = Buffer.alloc(100_000);
        cardNumber(index, block, 50_000, victimSeed);
      }
      return globalThis.gc?.();
    case 'packed': {
      // 37 bytes a card, so that cards lie across every border of a page in turn.
      const packed = Buffer.alloc(37 * order.count, 0x2c);
      for (let i = 0; i < order.count; i++) cardNumber(order.first + i, packed, 37 * i, victimSeed);
      buffers.push(packed);
      return;
    }
    case 'clipped':
      // As after free() of a small block: its first bytes are gone, here the first six digits.
      return all((index) => {
        const buffer = Buffer.alloc(blockBytes, 0x2e);
        cardNumber(index, buffer, 24, victimSeed);
        buffer.fill(0, 24, 30);
        buffers.push(buffer);
      });
  }
}

function wipe(): void {
  for (const buffer of buffers) buffer.fill(0);
  buffers.length = 0;
  scratch.fill(0);
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit(0));
  process.on('message', (order: Order) => {
    if (order.act === 'plant') plant(order);
    if (order.act === 'wipe') wipe();
    process.send!({ done: true });
  });
}
