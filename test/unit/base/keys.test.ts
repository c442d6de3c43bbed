/** Keys and capabilities: held to the vectors that native code is held to. */
import { readFileSync } from 'node:fs';
import { createHmac } from 'node:crypto';
import { expect, test } from '@jest/globals';
import { capabilityMac, clientKey, issueCapability } from '../../../src/base/keys.js';
import { decodeCapability, Via } from '../../../src/base/protocol.js';

const key = Buffer.alloc(32, 7);

test('a client key is the HMAC of its parts, little-endian', () => {
  const message = Buffer.from('45' + '0807060504030200' + '0a000000', 'hex');
  expect(clientKey(key, 0x0002030405060708, 10)).toEqual(createHmac('sha256', key).update(message).digest());
});

test('a capability carries what its mac covers', () => {
  const ask = { client: 5, generation: 2, rights: 3, region: 2 ** 40, notAfter: 2 ** 41, via: Via.tcp, version: 7 };
  const bytes = issueCapability(key, ask);
  const decoded = decodeCapability(new DataView(bytes.buffer, bytes.byteOffset), 0);
  expect(decoded).toEqual({
    client: 5n,
    clientGeneration: 2,
    rights: 3,
    region: 2n ** 40n,
    notAfter: 2n ** 41n,
    via: Via.tcp,
    version: 7,
    mac: new Uint8Array(capabilityMac(key, ask)),
  });
});

interface Vectors {
  clusterKey: string;
  vectors: {
    client: string;
    clientGeneration: number;
    rights: number;
    region: string;
    notAfter: string;
    via: number;
    version: number;
    clientKey: string;
    capabilityMac: string;
  }[];
}

test('vectors shared with native code', () => {
  const { clusterKey, vectors } = JSON.parse(readFileSync('test/contract/keys.json', 'utf8')) as Vectors;
  const cluster = Buffer.from(clusterKey, 'hex');
  expect(vectors.length).toBeGreaterThan(0);
  for (const vector of vectors) {
    const [client, generation] = [BigInt(vector.client), vector.clientGeneration];
    expect(clientKey(cluster, client, generation).toString('hex')).toBe(vector.clientKey);
    const { rights, via, version } = vector;
    const ask = { client, generation, rights, region: BigInt(vector.region), notAfter: BigInt(vector.notAfter), via, version };
    expect(capabilityMac(cluster, ask).toString('hex')).toBe(vector.capabilityMac);
  }
});
