/**
 * Who may do what with a file (A12): access parameters as they are kept with its inode, decided for clients and for those who ask
 * over HTTP.
 *
 * Names, attributes and the end of a file are enforced here. Data is enforced by the appliances: what is decided here goes into
 * capabilities (regions.ts) and is taken back there (protection.ts).
 * A key is never kept: from what somebody shows a digest is made once (scrypt, with the cluster's salt), and a file has a salted
 * HMAC of the digest of the key that it wants.
 */
import { createHmac, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import {
  decide,
  isInNetworks,
  lossAfter,
  OPEN,
  type AccessRight,
  type AccessRule,
  type Asker,
  type Outcome,
  type Ways,
} from '../base/access_rules.js';
import { ExtmemError } from '../base/errors.js';
import type { ApplianceInfo } from '../base/messages.js';
import { Right, Via } from '../base/protocol.js';
import type { Inode } from './inode.js';

export interface Verifier {
  readonly salt: Uint8Array;
  readonly mac: Uint8Array;
}

/** As the store keeps it. version grows with every change, also when there are no rules any more. */
export interface AccessRow {
  readonly version: number;
  readonly rules: readonly AccessRule[];
  readonly verifier?: Verifier;
}

/** Who asks, with digests of the keys that were shown. */
export interface Identity {
  readonly name: string;
  readonly address: string;
  readonly keys: readonly Uint8Array[];
}

/** What a capability for a region says. */
export interface Terms {
  readonly rights: number;
  readonly via: number;
  readonly notAfter: number;
}

export const MAX_KEYS = 8;
const DIGEST_BYTES = 32;
const SALT_BYTES = 16;
const WRITE_VIA_SHIFT = 8;
const NO_TERMS: Terms = { rights: 0, via: 0, notAfter: 0 };
const ANY_TERMS: Terms = { rights: Right.read | Right.write, via: 0, notAfter: 0 };
const derive = promisify<string, Uint8Array, number, Buffer>(scrypt);

export function isProtected(inode: Inode | undefined): boolean {
  return inode?.access !== undefined && inode.access.rules.length > 0;
}

export class Access {
  private readonly salt: Buffer;

  constructor(clusterKey: Uint8Array) {
    this.salt = createHmac('sha256', clusterKey).update('access keys').digest();
  }

  /** What of a key may be kept in memory. */
  async digest(key: string): Promise<Uint8Array> {
    return derive(key, this.salt, DIGEST_BYTES);
  }

  async makeVerifier(key: string): Promise<Verifier> {
    const salt = randomBytes(SALT_BYTES);
    return { salt, mac: macOf(salt, await this.digest(key)) };
  }

  outcome(inode: Inode, who: Identity, atMs = Date.now()): Outcome {
    const { access } = inode;
    return access === undefined ? OPEN : decide(access.rules, askerOf(access, who), atMs);
  }

  allows(inode: Inode, who: Identity | undefined, right: AccessRight): boolean {
    return who === undefined || this.outcome(inode, who).rights.has(right);
  }

  check(inode: Inode, who: Identity | undefined, right: AccessRight): void {
    if (this.allows(inode, who, right)) return;
    throw new ExtmemError('EACCES', `inode ${inode.ino}: its access parameters do not give ${who?.name ?? 'you'} the right to ${right}`);
  }

  /** Of data in a region on that appliance. */
  terms(inode: Inode, who: Identity, appliance: ApplianceInfo | undefined): Terms {
    const { access } = inode;
    if (access === undefined || access.rules.length === 0) return ANY_TERMS;
    const now = Date.now();
    const asker = askerOf(access, who);
    const outcome = decide(access.rules, asker, now);
    const read = outcome.rights.has('read') ? viaBits(outcome.readVia, appliance) : undefined;
    const write = outcome.rights.has('write') ? viaBits(outcome.writeVia, appliance) : undefined;
    if (read === undefined && write === undefined) return NO_TERMS;
    return {
      rights: (read === undefined ? 0 : Right.read) | (write === undefined ? 0 : Right.write),
      via: (read ?? 0) | ((write ?? 0) << WRITE_VIA_SHIFT),
      notAfter: lossAfter(access.rules, asker, now) ?? 0,
    };
  }
}

function askerOf({ verifier }: AccessRow, { name, address, keys }: Identity): Asker {
  const hasKey = verifier !== undefined && keys.some((key) => timingSafeEqual(macOf(verifier.salt, key), verifier.mac));
  return { name, address, hasKey };
}

function macOf(salt: Uint8Array, digest: Uint8Array): Buffer {
  return createHmac('sha256', salt).update(digest).digest();
}

/** Bits of Via; 0: any way; undefined: none that this appliance has. */
function viaBits(ways: Ways, appliance: ApplianceInfo | undefined): number | undefined {
  if (ways === 'any') return 0;
  const addresses = appliance === undefined ? [] : [appliance.address, ...(appliance.moreEndpoints ?? []).map(({ address }) => address)];
  const transports = (['shm', 'tcp', 'verbs'] as const).filter((name) => ways.includes(name)).map((name) => Via[name]);
  const links = addresses.map((address, index) => (isInNetworks(address, ways) ? Via.link0 << index : 0));
  const bits = [...transports, ...links].reduce<number>((sum, bit) => sum | bit, 0);
  return bits === 0 ? undefined : bits;
}
