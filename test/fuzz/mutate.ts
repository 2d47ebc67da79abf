/** A number below `bound`. */
export type Dice = (bound: number) => number;

const tricky = [0, 1, 0x0a, 0x0d, 0x20, 0x22, 0x30, 0x39, 0x5c, 0x7f, 0x80, 0x81, 0x82, 0x84, 0xa0, 0xc3, 0xe2, 0xed, 0xf4, 0xff];

/** A changed copy of `parent`: one to sixteen changes, some of which take a piece of `other` or one of `words`. At most `maxBytes` long. */
export function mutated(parent: Buffer, other: Buffer, words: readonly Buffer[], maxBytes: number, dice: Dice): Buffer {
  let bytes: Buffer = Buffer.from(parent);
  for (let changes = 1 << dice(5); changes > 0; changes--) bytes = changed(bytes, other, words, dice);
  return bytes.length > maxBytes ? bytes.subarray(0, maxBytes) : bytes;
}

function changed(bytes: Buffer, other: Buffer, words: readonly Buffer[], dice: Dice): Buffer {
  const { length } = bytes;
  const at = dice(length + 1);
  const piece = (from: Buffer): Buffer => {
    const start = dice(from.length + 1);
    return from.subarray(start, start + 1 + dice(Math.min(32, from.length + 1)));
  };
  const replaced = (count: number, by: Uint8Array): Buffer => Buffer.concat([bytes.subarray(0, at), by, bytes.subarray(Math.min(at + count, length))]);
  switch (dice(10)) {
    case 0:
      if (at < length) bytes[at] = bytes[at]! ^ (1 << dice(8));
      return bytes;
    case 1:
      if (at < length) bytes[at] = tricky[dice(tricky.length)]!;
      return bytes;
    case 2:
      if (at < length) bytes[at] = (bytes[at]! + dice(17) - 8) & 0xff;
      return bytes;
    case 3:
      return replaced(0, Buffer.of(dice(3) === 0 ? dice(256) : tricky[dice(tricky.length)]!));
    case 4:
      return replaced(1 + dice(Math.max(1, Math.min(length, 16))), Buffer.alloc(0));
    case 5:
      return replaced(0, piece(bytes));
    case 6:
      return replaced(dice(8), piece(other));
    case 7:
      // A digit is changed to another digit: for lengths and card numbers.
      for (let k = 0; k < length; k++) {
        const place = (at + k) % length;
        if (bytes[place]! >= 0x30 && bytes[place]! <= 0x39) {
          bytes[place] = 0x30 + dice(10);
          break;
        }
      }
      return bytes;
    default:
      if (words.length === 0) return bytes;
      return replaced(dice(2) === 0 ? 0 : dice(8), words[dice(words.length)]!);
  }
}
