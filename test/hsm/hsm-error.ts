import type { HsmErrorKind } from '../../hsm/errors.ts';

/** What `t.throws` and `t.rejects` compare an HsmError of that kind with. */
export function hsmError(kind: HsmErrorKind): { name: string; kind: HsmErrorKind } {
  return { name: 'HsmError', kind };
}
