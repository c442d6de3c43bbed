/** What the manager asks of an appliance that memory moves to (messages.ts, `copy`). */
import { Type } from '@sinclair/typebox';
import { MAX_LINKS } from './protocol.js';

const Whole = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Blob = Type.Uint8Array();

export const CopyAsk = Type.Object({
  client: Whole, // in whose name others are read; what it may read, the capabilities say
  generation: Type.Integer(),
  key: Blob,
  limitMs: Type.Integer({ minimum: 1 }),
  origins: Type.Array(
    Type.Object({
      id: Type.String(),
      incarnation: Whole,
      endpoints: Type.Array(Type.Object({ address: Type.String(), port: Type.Integer({ minimum: 1, maximum: 65535 }) }), {
        minItems: 1,
        maxItems: MAX_LINKS,
      }),
    }),
  ),
  pieces: Type.Array(
    Type.Object({
      to: Type.Object({ region: Whole, offset: Whole, length: Whole }),
      /** All with the same bytes: the next where one cannot be read. `bytes`: of that region. */
      from: Type.Array(Type.Object({ origin: Type.String(), region: Whole, bytes: Whole, offset: Whole, capability: Blob })),
    }),
  ),
});
