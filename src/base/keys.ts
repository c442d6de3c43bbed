/**
 * Keys and capabilities, all derived from the cluster key, which only the manager and the appliances hold. The appliances
 * check them in native code (native/region); both sides are held to the vectors in test/contract/keys.json.
 */
import { createHmac } from 'node:crypto';
import { CapabilityBytes, MAC_BYTES, encodeCapability as layOut } from './protocol.js';

/** What a client proves itself with towards every appliance: HMAC(cluster key, 'E' | client u64 | generation u32). */
export function clientKey(clusterKey: Uint8Array, client: number | bigint, generation: number): Buffer {
  const message = Buffer.alloc(1 + 8 + 4);
  message.write('E', 0, 'latin1');
  message.writeBigUInt64LE(BigInt(client), 1);
  message.writeUInt32LE(generation, 9);
  return createHmac('sha256', clusterKey).update(message).digest();
}

export interface CapabilityAsk {
  client: number | bigint;
  generation: number;
  /** Right.read | Right.write */
  rights: number;
  region: number | bigint;
  /** Milliseconds since the epoch; default 0: no end. */
  notAfter?: number | bigint;
  /** Bits of Via; default 0: any way. */
  via?: number;
  /** Of the region's access parameters; default 0: it never had any. */
  version?: number;
}

/** The mac of a capability: HMAC(cluster key, 'R' | client u64 | generation u32 | rights u32 | region u64 | not after u64 | via u32 |
 *  version u32). */
export function capabilityMac(clusterKey: Uint8Array, ask: CapabilityAsk): Buffer {
  const message = Buffer.alloc(1 + 8 + 4 + 4 + 8 + 8 + 4 + 4);
  message.write('R', 0, 'latin1');
  message.writeBigUInt64LE(BigInt(ask.client), 1);
  message.writeUInt32LE(ask.generation, 9);
  message.writeUInt32LE(ask.rights, 13);
  message.writeBigUInt64LE(BigInt(ask.region), 17);
  message.writeBigUInt64LE(BigInt(ask.notAfter ?? 0), 25);
  message.writeUInt32LE(ask.via ?? 0, 33);
  message.writeUInt32LE(ask.version ?? 0, 37);
  return createHmac('sha256', clusterKey).update(message).digest();
}

/** The payload of `attach`: the right of one client to use one region. */
export function issueCapability(clusterKey: Uint8Array, ask: CapabilityAsk): Buffer {
  const bytes = Buffer.alloc(CapabilityBytes);
  layOut(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0, {
    client: BigInt(ask.client),
    clientGeneration: ask.generation,
    rights: ask.rights,
    region: BigInt(ask.region),
    notAfter: BigInt(ask.notAfter ?? 0),
    via: ask.via ?? 0,
    version: ask.version ?? 0,
    mac: capabilityMac(clusterKey, ask),
  });
  return bytes;
}

export const CLUSTER_KEY_BYTES = MAC_BYTES;
